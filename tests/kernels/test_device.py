"""Devices that are too old for kernels are found out, and said once."""

import warnings

import jax
import pytest

from pallas_kernels import device


class Named:
    """A device that a process might have."""

    def __init__(self, kind, capability=None):
        self.device_kind = kind
        self.compute_capability = capability


@pytest.fixture
def present(monkeypatch):
    """Sets the devices of this process, by platform."""
    device._warn_once.cache_clear()
    devices = {}
    monkeypatch.setattr(device, "_local", devices.get)
    return devices


def test_nothing_is_known_of_devices_that_are_not_there(present):
    assert device.device_kind("tpu") is device.device_kind("cuda") is None
    assert device.gpu_capability() is None
    assert not device.unsupported("tpu")
    assert not device.unsupported("cuda")


@pytest.mark.parametrize(
    ("platform", "found"),
    [
        ("tpu", Named("TPU v3")),
        ("tpu", Named("TPU v4 lite")),
        ("cuda", Named("Tesla V100-SXM2-16GB", "7.0")),
        ("cuda", Named("NVIDIA GeForce RTX 2080", "7.5")),
    ],
)
def test_an_old_device_is_said_once(present, platform, found):
    present[platform] = found
    with pytest.warns(UserWarning, match=found.device_kind):
        assert device.unsupported(platform)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert device.unsupported(platform)


@pytest.mark.parametrize(
    ("platform", "found"),
    [
        ("tpu", Named("TPU v5 lite")),
        ("tpu", Named("TPU v6e")),
        ("cuda", Named("NVIDIA A100-SXM4-80GB", "8.0")),
        ("cuda", Named("NVIDIA B200", "10.0")),
    ],
)
def test_a_new_device_is_supported(present, platform, found):
    present[platform] = found
    assert not device.unsupported(platform)


@pytest.mark.parametrize(
    ("kind", "platform", "capability"),
    [
        ("NVIDIA H200", "gpu", (9, 0)),
        ("NVIDIA A100-SXM4-40GB", "gpu", (8, 0)),
        ("NVIDIA Something New", "gpu", None),
        ("TPU v5e", "tpu", None),
        ("cpu", "cpu", None),
    ],
)
def test_a_mesh_names_what_is_compiled_for(present, kind, platform, capability):
    """It counts more than what this process has."""
    present["cuda"] = Named("Tesla V100-SXM2-16GB", "7.0")
    mesh = jax.sharding.AbstractMesh(
        (1,),
        ("data",),
        (jax.sharding.AxisType.Auto,),
        abstract_device=jax.sharding.AbstractDevice(
            device_kind=kind, num_cores=None, platform=platform
        ),
    )
    with jax.sharding.use_abstract_mesh(mesh):
        assert device.gpu_capability() == capability
        assert not device.unsupported("cuda")
        expected = kind if platform == "tpu" else None
        assert device.device_kind("tpu") == expected
