"""Signature, validation and dispatch of the scan of a deep memory."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from pallas_kernels import device
from pallas_kernels.mlp_memory import chunked, tpu, triton
from pallas_kernels.mlp_memory.step import trace
from pallas_kernels.restart import restartable

KERNELS = {"pallas_tpu": ("tpu", tpu), "pallas_triton": ("cuda", triton)}
"""By name: the platform and the module."""
IMPLEMENTATIONS = ("chunked", *KERNELS)
_LEAST = 128
"""Fewer tokens are not worth a program."""

State = tuple[Float[Array, "... d_in d_out"], ...]
Tokens = tuple[Float[Array, "... T d"], ...]
Gates = tuple[Float[Array, "... T"], ...]
Step = Callable[..., tuple[jax.Array, State]]


def memory_scan(
    step: Step,
    state: State,
    tokens: Tokens,
    gates: Gates,
    *,
    chunk_size: int,
    implementation: str | None = None,
    interpret: Any = False,
) -> tuple[Float[Array, "... T d_out"], State]:
    """Runs a memory of one or more matrices over a sequence, chunk by chunk.

    The chunk step defines the memory, for instance an MLP whose layers each
    follow the recurrence of :func:`pallas_kernels.delta_memory.delta_scan`. It
    is written in ``jax.numpy`` and is the body of the scan and of the kernels.
    The TPU kernels keep all matrices, momenta included, in vector memory from
    the first token to the last, and run the step's ``jax.vjp`` backward.

    Args:
        step: pure function ``(state, tokens, gates, valid, inverse) ->
            (o, state)`` on one chunk, ``[heads, C, d]`` tokens and
            ``[heads, C]`` gates. ``valid`` is ``[1, C]``, False for padding,
            which must change nothing, or ``None``; ``inverse`` is to be passed
            to ``chunk_step``. Kernels support no step that closes over arrays,
            those for TPUs none with an operation in
            :data:`pallas_kernels.mlp_memory.tpu.MISSING`.
        state: matrices before the first token, ``[*lead, d_in, d_out]``.
        tokens: arrays ``[*lead, T, d]``, the first with the outputs' dtype.
        gates: arrays ``[*lead, T]``.
        chunk_size: tokens per chunk. Results depend on it.
        implementation: ``"chunked"`` (plain ``jax.numpy``), ``"pallas_tpu"``
            (one kernel in each direction), ``"pallas_triton"`` (plain except
            for the triangular inverse), or ``None`` for the best one on the
            platform that the program is lowered for, see
            :func:`implementation_for`. Kernels do not support forward-mode
            differentiation.
        interpret: whether to run kernels without their hardware, slowly, for
            tests, as in ``pl.pallas_call``.

    Returns:
        ``(o, state)``: outputs ``[*lead, T, d_out]`` and the final state. All
        arrays have gradients, and the final state accepts cotangents.

    Raises:
        ValueError: if a shape or the implementation is not as described, or
            the named implementation cannot run.

    Example:
        >>> import jax.numpy as jnp
        >>> def step(state, tokens, gates, valid, inverse):
        ...     (w,), (x,), (eta,) = state, tokens, gates
        ...     return x @ w, (w + x.mT @ (eta[..., None] * x),)
        >>> x, eta = jnp.ones((1, 4, 2)), jnp.ones((1, 4))
        >>> start = jnp.zeros((1, 2, 2))
        >>> o, _ = memory_scan(step, (start,), (x,), (eta,), chunk_size=2)
        >>> o[0, :, 0].tolist()
        [0.0, 0.0, 4.0, 4.0]
    """
    _validate(state, tokens, gates, chunk_size)
    arrays = {"state": state, "tokens": tokens, "gates": gates}
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(
            f"implementation={implementation!r} does not exist here; allowed: "
            f"None, {', '.join(map(repr, IMPLEMENTATIONS))}"
        )
    plain = functools.partial(chunked.scan, step, chunk_size=chunk_size)
    if implementation == "chunked":
        return plain(arrays)
    if implementation is None:
        kernels = _offered(state, tokens, gates, chunk_size)
        if kernels:
            program = trace(step, arrays, chunk_size)
            kernels = [n for n in kernels if not _why_not_step(n, program)]
        if not kernels:
            return plain(arrays)
    else:
        kernels = [implementation]
        _, kernel = KERNELS[implementation]
        if reason := kernel.why_not(
            state, tokens, gates, chunk_size, bool(interpret)
        ) or _why_not_step(implementation, trace(step, arrays, chunk_size)):
            raise ValueError(
                f"implementation={implementation!r} cannot run: {reason}"
            )

    def run(way, *operands, **options):
        def kernel(name):
            return functools.partial(
                getattr(KERNELS[name][1], way),
                step,
                chunk_size=chunk_size,
                interpret=interpret,
                **options,
            )

        if implementation is not None:
            return kernel(implementation)(*operands)
        default = functools.partial(
            getattr(chunked, way), step, chunk_size=chunk_size, **options
        )
        by_platform = {KERNELS[name][0]: kernel(name) for name in kernels}
        return jax.lax.platform_dependent(
            *operands, default=default, **by_platform
        )

    forward, backward = (
        functools.partial(run, way) for way in ("forward", "backward")
    )
    return restartable(forward, backward, plain)(arrays)


def implementation_for(
    platform: str, state, tokens, gates, *, chunk_size: int
) -> str:
    """Returns the implementation that ``memory_scan`` chooses for a platform.

    Args:
        platform: platform of the compiled program: ``"tpu"``, ``"cpu"`` or
            ``"cuda"``.
        state: see :func:`memory_scan`; for all arrays, shapes and dtypes
            suffice.
        tokens: see :func:`memory_scan`.
        gates: see :func:`memory_scan`.
        chunk_size: see :func:`memory_scan`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> w, x, gate = (
        ...     jax.ShapeDtypeStruct((8, *dims), jnp.float32)
        ...     for dims in ((64, 256), (1024, 64), (1024,))
        ... )
        >>> [
        ...     implementation_for(name, (w,), (x,), (gate,), chunk_size=64)
        ...     for name in ("tpu", "cuda", "cpu")
        ... ]
        ['pallas_tpu', 'pallas_triton', 'chunked']
    """
    offered = _offered(state, tokens, gates, chunk_size)
    names = {KERNELS[name][0]: name for name in offered}
    return names.get(platform, "chunked")


def _why_not_step(name, program):
    """Why a kernel cannot run a step; its derivative is ours, not JAX's."""
    if program.consts:
        return "the step holds arrays of its own"
    return KERNELS[name][1].why_not_step(program)


def _offered(state, tokens, gates, chunk_size):
    """The kernels that can run where they have their hardware."""
    if tokens[0].shape[-2] < _LEAST:
        return ()
    return tuple(
        name
        for name, (platform, kernel) in KERNELS.items()
        if kernel.why_not(state, tokens, gates, chunk_size) is None
        and not device.unsupported(platform)
    )


def _validate(state, tokens, gates, chunk_size):
    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size!r} must be an integer >= 1")
    if not state or not tokens or not gates:
        raise ValueError("state, tokens and gates need an array each")
    *lead, length, _ = tokens[0].shape
    if not length:
        raise ValueError("tokens[0] has no tokens; T must be at least 1")
    for name, arrays, own in (
        ("state", state, 2),
        ("tokens", tokens, 2),
        ("gates", gates, 1),
    ):
        for index, array in enumerate(arrays):
            shape = array.shape
            at = len(shape) - own
            long = name == "state" or shape[at] == length
            if list(shape[:at]) != lead or not long:
                expected = (*lead, *(() if name == "state" else (length,)))
                raise ValueError(
                    f"{name}[{index}] has shape {shape}, must begin with "
                    f"{expected} as tokens[0] does"
                )
