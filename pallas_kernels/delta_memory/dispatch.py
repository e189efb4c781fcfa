"""Which kernel of the delta memory runs where.

Nothing is chosen by the devices of this process: a program may be lowered for
a platform that is not there, and for each there is at most one kernel. What a
program is compiled for settles only whether a GPU or TPU is new enough.
"""

from pallas_kernels import device
from pallas_kernels.delta_memory import mosaic_gpu, tpu, triton

BLOCK = 128
"""Tokens between the states that are saved: on all platforms alike."""
KERNELS = {
    "pallas_tpu": tpu,
    "pallas_triton": triton,
    "pallas_mosaic_gpu": mosaic_gpu,
}
"""Modules with ``why_not``, ``forward``, ``backward`` and ``LEAST_BLOCK``."""
PREFERENCE = {
    "tpu": ("pallas_tpu",),
    "cuda": ("pallas_mosaic_gpu", "pallas_triton"),
}
"""By platform, the best first."""
IMPLEMENTATIONS = ("reference", "chunked", *KERNELS)


def choose(arrays, chunk_size, read, implementation, interpret=False):
    """Settles what runs.

    Args:
        arrays: ``delta_scan``'s by name, or their shapes.
        chunk_size: as in ``delta_scan``.
        read: as in ``delta_scan``.
        implementation: as in ``delta_scan``.
        interpret: whether kernels run without their hardware.

    Returns:
        ``(name, kernels, block)``: what runs on every platform, or, where that
        is ``None``, ``(platform, name)`` of each that has a kernel; and the
        tokens between saved states.

    Raises:
        ValueError: if the implementation does not exist or cannot run.
    """
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(
            f"implementation={implementation!r} does not exist here; allowed: "
            f"None, {', '.join(map(repr, IMPLEMENTATIONS))}"
        )
    if implementation in ("reference", "chunked"):
        return implementation, (), chunk_size
    length = arrays["x"].shape[-2]
    if implementation is None:
        block = tokens_per_block(length, chunk_size, read)
        # Not for a few tokens, nor where a fifth of the work were padding.
        fits = length >= BLOCK and -length % block <= length // 4
        kernels = _offered(arrays, block, read) if fits else ()
        return None if kernels else "chunked", kernels, block
    kernel = KERNELS[implementation]
    block = tokens_per_block(length, chunk_size, read, kernel.LEAST_BLOCK)
    if reason := kernel.why_not(arrays, block, read, interpret):
        raise ValueError(
            f"implementation={implementation!r} cannot run: {reason}"
        )
    return implementation, (), block


def tokens_per_block(length, chunk_size, read, least=16) -> int:
    """Tokens between saved states: our own choice where results allow it.

    Example:
        >>> (
        ...     tokens_per_block(1000, 64, "before"),
        ...     tokens_per_block(9, 64, "after"),
        ... )
        (128, 16)
        >>> tokens_per_block(1000, 64, "chunk")
        64
    """
    if read == "chunk":
        return chunk_size
    enough = max(least, min(length, BLOCK))
    return next(b for b in (16, 32, 64, BLOCK) if b >= enough)


def _offered(arrays, block, read):
    """``(platform, name)`` of the best kernel of each platform."""
    found = []
    for platform, names in PREFERENCE.items():
        able = (
            name
            for name in names
            if KERNELS[name].why_not(arrays, block, read) is None
        )
        name = next(able, None)
        if name is not None and not device.unsupported(platform):
            found.append((platform, name))
    return tuple(found)
