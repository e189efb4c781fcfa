"""Which accelerators the kernels were written for.

A program may be compiled for a device that is not there: a mesh that is set
(``jax.sharding.use_abstract_mesh``) names it. Otherwise the devices of this
process are asked. Nothing here chooses a platform; that is settled when a
program is lowered.
"""

import functools
import warnings

import jax

VMEM_BYTES = 48 * 2**20
"""What a kernel may use of a TPU's vector memory; the least has 64 MiB."""
_CAPABILITIES = {
    "V100": (7, 0),
    "T4": (7, 5),
    "A100": (8, 0),
    "L4": (8, 9),
    "L40": (8, 9),
    "H20": (9, 0),
    "H100": (9, 0),
    "H200": (9, 0),
    "GH200": (9, 0),
    "B200": (10, 0),
    "GB200": (10, 0),
}
"""CUDA compute capability by name, for devices that are not there."""
LEAST_CAPABILITY = (8, 0)
"""The first GPUs that multiply bfloat16."""
OLD_TPUS = ("TPU v2", "TPU v3", "TPU v4")
"""Their vector memory is smaller than the kernels' blocks."""


def device_kind(platform: str) -> str | None:
    """What a mesh or this process says of its devices, e.g. ``"TPU v6e"``.

    Args:
        platform: ``"tpu"`` or ``"cuda"``.

    Returns:
        ``None`` where there is no such device and no mesh names one.

    Example:
        >>> device_kind("tpu") is None  # where this is a CPU
        True
    """
    named = jax.sharding.get_abstract_mesh().abstract_device
    if named is not None:
        meant = {"gpu": "cuda"}.get(named.platform, named.platform)
        return named.device_kind if meant == platform else None
    device = _local(platform)
    return None if device is None else device.device_kind


def here() -> str:
    """The platform that this process' programs are lowered for.

    For reports; what runs is settled by the lowering.

    Example:
        >>> here()  # where this is a CPU
        'cpu'
    """
    platform = jax.devices()[0].platform
    return {"gpu": "cuda"}.get(platform, platform)


def gpu_capability() -> tuple[int, int] | None:
    """CUDA compute capability of the GPU that is meant; ``None``: unknown."""
    kind = device_kind("cuda")
    device = _local("cuda")
    if device is not None and kind == device.device_kind:
        major, _, minor = device.compute_capability.partition(".")
        return int(major), int(minor or 0)
    for word in (kind or "").replace("-", " ").split():
        if word in _CAPABILITIES:
            return _CAPABILITIES[word]
    return None


def unsupported(platform: str) -> bool:
    """Whether the device that is meant is too old for kernels; warns once.

    Args:
        platform: ``"tpu"`` or ``"cuda"``; a device of which nothing is known
            counts as new.
    """
    kind = device_kind(platform)
    if platform == "tpu":
        old = kind is not None and kind.startswith(OLD_TPUS)
    else:
        capability = gpu_capability()
        old = capability is not None and capability < LEAST_CAPABILITY
    if old:
        _warn_once(kind)
    return old


@functools.cache
def _local(platform):
    try:
        return jax.local_devices(backend=platform)[0]
    except RuntimeError:  # No such backend in this process.
        return None


@functools.cache
def _warn_once(kind):
    warnings.warn(
        f"{kind} is older than what the kernels support (TPU v5e, GPUs of "
        "compute capability 8.0): plain jax.numpy runs in their place",
        stacklevel=2,
    )
