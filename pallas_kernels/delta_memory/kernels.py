"""Kernels of the delta memory, and the number of tokens per block."""

from pallas_kernels.delta_memory import mosaic_gpu, tpu, triton
from pallas_kernels.dispatch import Choice, choose_kernels

BLOCK = 128
"""Largest number of tokens between saved states, the same on all platforms."""
PLAIN = ("reference", "chunked")
KERNELS = {
    "pallas_tpu": ("tpu", tpu),
    "pallas_triton": ("cuda", triton),
    "pallas_mosaic_gpu": ("cuda", mosaic_gpu),
}
"""Modules with ``why_not``, ``forward``, ``backward`` and ``LEAST_BLOCK``; see
``pallas_kernels.dispatch.Kernels``."""
IMPLEMENTATIONS = (*PLAIN, *KERNELS)


def choose(
    arrays, chunk_size, read, implementation, interpret=False
) -> tuple[Choice, int]:
    """Chooses the implementation to run.

    Args:
        arrays: arrays of ``delta_scan`` by name, or their shapes.
        chunk_size: as in ``delta_scan``.
        read: as in ``delta_scan``.
        implementation: as in ``delta_scan``.
        interpret: whether a kernel named in ``implementation`` is interpreted.

    Returns:
        The choice, and the number of tokens between saved states.

    Raises:
        ValueError: if the implementation does not exist or cannot run.
    """
    length = arrays["x"].shape[-2]
    interpret = interpret and implementation is not None

    def block_of(kernel):
        return tokens_per_block(length, chunk_size, read, kernel.LEAST_BLOCK)

    block = tokens_per_block(length, chunk_size, read)
    choice = choose_kernels(
        implementation,
        PLAIN,
        KERNELS,
        lambda kernel: kernel.why_not(
            arrays, block_of(kernel), read, interpret
        ),
        # Not for few tokens, or if more than a fifth of them is padding.
        worth=length >= BLOCK and -length % block <= length // 4,
    )
    if choice in KERNELS:
        block = block_of(KERNELS[choice][1])
    return choice, block


def tokens_per_block(length, chunk_size, read, least=16) -> int:
    """Returns tokens per block; ``chunk_size`` only where results depend on it.

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
