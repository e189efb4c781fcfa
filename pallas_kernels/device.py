"""Properties of the accelerator that a program is compiled for.

The abstract mesh (``jax.sharding.use_abstract_mesh``) may name a device that
this process does not have; otherwise it is the process's own. Nothing here
chooses a platform, which is known when a program is lowered.
"""

import functools
import warnings

import jax

VMEM_BYTES = 48 * 2**20
"""Vector memory that a kernel may use; the smallest TPU has 64 MiB."""
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
"""CUDA compute capability by name, for devices this process does not have."""
LEAST_CAPABILITY = (8, 0)
"""Compute capability of the first GPUs with bfloat16 products."""
OLD_TPUS = ("TPU v2", "TPU v3", "TPU v4")
"""TPUs whose vector memory is smaller than the kernels' blocks."""


def device_kind(platform: str) -> str | None:
    """Returns the name of the target device, for instance ``"TPU v6e"``.

    Args:
        platform: ``"tpu"`` or ``"cuda"``.

    Returns:
        The name, or ``None`` if neither the mesh nor this process has a device
        of the platform.

    Example:
        >>> device_kind("tpu") is None  # on a CPU
        True
    """
    named = jax.sharding.get_abstract_mesh().abstract_device
    if named is not None:
        target = {"gpu": "cuda"}.get(named.platform, named.platform)
        return named.device_kind if target == platform else None
    device = _local(platform)
    return None if device is None else device.device_kind


def here() -> str:
    """Returns the default platform of this process, for reports.

    Example:
        >>> here()  # on a CPU
        'cpu'
    """
    platform = jax.devices()[0].platform
    return {"gpu": "cuda"}.get(platform, platform)


def gpu_capability() -> tuple[int, int] | None:
    """Returns the target GPU's CUDA compute capability, ``None`` if unknown."""
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
    """Returns whether the target device is too old for kernels; warns once.

    Unknown devices are taken to be new enough.

    Args:
        platform: ``"tpu"`` or ``"cuda"``.
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
    except RuntimeError:  # This process has no such backend.
        return None


@functools.cache
def _warn_once(kind):
    warnings.warn(
        f"{kind} is older than what the kernels support (TPU v5e, GPUs of "
        "compute capability 8.0): plain jax.numpy runs in their place",
        stacklevel=2,
    )
