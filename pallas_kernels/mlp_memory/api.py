"""Signature, validation and dispatch of the scan of a deep memory."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from pallas_kernels.dispatch import choose_kernels, name_on, run_kernels
from pallas_kernels.mlp_memory import chunked, tpu, triton
from pallas_kernels.mlp_memory.step import trace
from pallas_kernels.restart import restartable

PLAIN = ("chunked",)
KERNELS = {"pallas_tpu": ("tpu", tpu), "pallas_triton": ("cuda", triton)}
"""Modules with ``why_not``, ``why_not_step``, ``forward`` and ``backward``; see
``pallas_kernels.dispatch.Kernels``."""
IMPLEMENTATIONS = (*PLAIN, *KERNELS)
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
    plain = functools.partial(chunked.scan, step, chunk_size=chunk_size)
    program = functools.cache(lambda: trace(step, arrays, chunk_size))
    interpreted = bool(interpret) and implementation is not None

    def why_not(kernel):
        # The step is traced only for what can run its arrays.
        return kernel.why_not(
            state, tokens, gates, chunk_size, interpreted
        ) or _why_not_step(kernel, program())

    choice = choose_kernels(
        implementation, PLAIN, KERNELS, why_not, worth=_worth(tokens)
    )
    if choice in PLAIN:
        return plain(arrays)

    def run(way, *operands, **options):
        options["chunk_size"] = chunk_size

        def bind(kernel):
            run = getattr(kernel, way)
            return functools.partial(run, step, interpret=interpret, **options)

        default = functools.partial(getattr(chunked, way), step, **options)
        return run_kernels(choice, KERNELS, bind, default, *operands)

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
    choice = choose_kernels(
        None,
        PLAIN,
        KERNELS,
        lambda kernel: kernel.why_not(state, tokens, gates, chunk_size),
        worth=_worth(tokens),
    )
    return name_on(platform, choice, PLAIN)


def _why_not_step(kernel, program):
    """Why a kernel cannot run a step; its derivative is ours, not JAX's."""
    if program.consts:
        return "the step holds arrays of its own"
    return kernel.why_not_step(program)


def _worth(tokens):
    return tokens[0].shape[-2] >= _LEAST


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
