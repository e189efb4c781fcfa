"""The delta memory's walks over chunks with Hopper's matrix units.

These are the forward and backward walks of
:mod:`pallas_kernels.delta_memory.triton`. A program holds 64 columns of a
head's state, transposed, ``[64, d_in]``: they are the rows of every product's
left operand and of its sum, so both stay in the registers of one warpgroup.
Only operands that all columns share are read from shared memory, into which a
second warpgroup copies the next chunk meanwhile. The step of one chunk is in
:mod:`pallas_kernels.delta_memory.mosaic_steps`.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.delta_memory import mosaic_steps as steps
from pallas_kernels.delta_memory.mosaic_steps import CHUNK, COLUMNS

STAGES = 2
"""Chunks in shared memory: one in use, one being copied."""
MEMORY_REGISTERS = 40
"""Registers of a thread that only starts copies."""
SWIZZLE = 128
"""Bytes per row of the tiles that matrix units read."""


def walk(given, wanted, case, *, every, interpret):
    """Runs the forward walk, like :func:`triton_kernels.walk_kernel`.

    Args:
        given: inputs by name: ``w``, ``s`` ``[row, d_in, d_out]``, ``x``,
            ``q`` ``[row, T, d_in]``, ``g`` ``[row, T, d_out]``, ``rows``
            ``[row, chunk, kind, C]``, ``solve``, ``gather``, ``shown``,
            ``hidden`` ``[row, chunk, C, C]``, those that ``case`` has.
        wanted: names of outputs: ``out``, ``w_end``, ``s_end``, and
            ``w_start``, ``s_start``, the states every ``every`` chunks.
        case: terms of the recurrence.
        every: chunks between saved states.
        interpret: ``False`` or ``plgpu.InterpretGPUParams``.

    Returns:
        The outputs by name.
    """
    blocks = -(-given["rows"].shape[1] // every)
    outputs = {"out": given["g"]}
    for name in wanted:
        if name.endswith("_end"):
            outputs[name] = given[name[0]]
        elif name.endswith("_start"):
            state = given[name[0]]
            outputs[name] = jax.ShapeDtypeStruct(
                (blocks, *state.shape), state.dtype
            )
    return _launch(
        steps.step_two_states if case.momentum else steps.step,
        {name: given[name] for name in case.states},
        {n: value for n, value in given.items() if n not in ("w", "s")},
        outputs,
        case,
        every=every,
        spare=case.momentum,
        interpret=interpret,
        name="delta_memory_mosaic_walk",
    )


def walk_back(given, wanted, case, *, interpret):
    """Runs the walk of the state's cotangent, see :func:`walk`.

    Args:
        given: inputs by name: ``w_end``, ``s_end`` and ``o`` (cotangents),
            ``x``, ``q``, ``rows``, ``solve`` and ``shown`` or ``hidden``.
        wanted: names of outputs: ``dw_low``, ``ds_low``
            ``[row, chunk, d_in, d_out]`` (after each chunk), ``w``, ``s``
            (before the first one) and, with a delta term, ``dy``
            ``[row, T, d_out]``.
        case: terms of the recurrence.
        interpret: ``False`` or ``plgpu.InterpretGPUParams``.

    Returns:
        The outputs by name.
    """
    rows, *shape = given["w_end"].shape
    lows = jax.ShapeDtypeStruct(
        (rows, given["rows"].shape[1], *shape), given["x"].dtype
    )
    outputs = {f"{name}_end": given[f"{name}_end"] for name in case.states}
    outputs |= {f"d{name}_low": lows for name in case.states}
    if case.delta:
        outputs["dy"] = given["o"]
    out = _launch(
        steps.step_back,
        {name: given[f"{name}_end"] for name in case.states},
        {n: value for n, value in given.items() if not n.endswith("_end")},
        outputs,
        case,
        reverse=True,
        interpret=interpret,
        name="delta_memory_mosaic_walk_back",
    )
    out = {name.removesuffix("_end"): value for name, value in out.items()}
    return {name: out[name] for name in wanted}


def _launch(
    step,
    states,
    tokens,
    outputs,
    case,
    *,
    reverse=False,
    every=1,
    spare=False,
    interpret,
    name,
):
    """Walks over chunks, in reverse order if ``reverse``.

    ``step`` takes the states of a program and a :class:`mosaic_steps.Chunk`
    and returns the next states. The last ones are written to the outputs
    ``w_end`` and ``s_end``, those before every ``every`` chunks to ``w_start``
    and ``s_start``.
    """
    rows, d_in, d_out = states["w"].shape
    count, low = tokens["rows"].shape[1], tokens["x"].dtype
    names = (*states, *tokens, *outputs)
    whole = [n for n in outputs if n.endswith(("_end", "_start"))]
    sent = {
        n: _shared(v.shape[-2] if v.ndim == 4 else CHUNK, COLUMNS, v.dtype)
        for n, v in outputs.items()
        if n not in whole
    }
    spares = {}
    if spare:
        spares = {n: _shared(COLUMNS, d_in, low) for n in states}
        spares["erased"] = _shared(COLUMNS, CHUNK, low)

    def kernel(*given):
        *arrays, sent, spares = given
        refs = dict(zip(names, arrays, strict=True))
        program = jax.lax.axis_index("program")
        row = jax.lax.div(program, d_out // COLUMNS)
        column = jax.lax.rem(program, d_out // COLUMNS)
        columns = pl.ds(column * COLUMNS, COLUMNS)

        def number(index):
            return count - 1 - index if reverse else index

        def body(indices, *carried):
            *blocks, state = carried
            index = number(indices[0])
            if "w_start" in refs:

                @pl.when(jax.lax.rem(index, every) == 0)
                def _():
                    block = jax.lax.div(index, every)
                    _store(refs, "_start", (block, row, columns), state)

            # The last chunk's outputs must have left shared memory.
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            # With a constant the compiler would keep all addresses in
            # registers, which the states need.
            first = jax.lax.optimization_barrier(jnp.zeros((), jnp.int32))
            chunk = steps.Chunk(
                dict(zip(tokens, blocks, strict=True)),
                {n: ref.at[first] for n, ref in sent.items()},
                {n: ref.at[first] for n, ref in spares.items()},
                case,
                bool(interpret),
            )
            state = step(state, chunk)
            plgpu.commit_smem()
            for n, ref in chunk.outputs.items():
                at: tuple = (pl.ds(index * CHUNK, CHUNK),)
                if outputs[n].ndim == 4:
                    at = index, slice(None)
                plgpu.copy_smem_to_gmem(ref, refs[n].at[(row, *at, columns)])
            return state

        def compute(pipeline):
            state = {
                n: [
                    plgpu.load(piece, optimized=False)  # type: ignore
                    for piece in steps.pieces(refs[n].at[row, columns])
                ]
                for n in states
            }
            state = pipeline(state)
            if "w_end" in refs:
                _store(refs, "_end", (row, columns), state)
            plgpu.wait_smem_to_gmem(0)

        plgpu.emit_pipeline_warp_specialized(
            body,
            grid=(count,),
            in_specs=[
                _spec(n, value, column, number) for n, value in tokens.items()
            ],
            max_concurrent_steps=STAGES,
            memory_registers=MEMORY_REGISTERS,
            wg_axis="warpgroup",
            num_compute_wgs=1,
            compute_context=compute,
        )(*(refs[n].at[row] for n in tokens))

    kernel.__name__ = name
    call = plgpu.kernel(
        kernel,
        out_type=[
            jax.eval_shape(_turned, v)
            if n in whole
            else jax.ShapeDtypeStruct(v.shape, v.dtype)
            for n, v in outputs.items()
        ],
        scratch_types=[sent, spares],
        # CUDA limits all grid axes but the first to 65,535.
        grid=(rows * (d_out // COLUMNS),),
        grid_names=("program",),
        num_threads=2,
        thread_name="warpgroup",
        interpret=interpret,
    )
    given = *(_turned(states[n]) for n in states), *tokens.values()
    # Pipelines need 32-bit integers.
    with jax.enable_x64(False):
        out = call(*given)
    return {
        n: _turned(v) if n in whole else v
        for n, v in zip(outputs, out, strict=True)
    }


def _spec(name, value, column, number):
    """Spec of a chunk's part of one row; of ``g`` and ``o`` some columns."""
    *_, height, width = value.shape
    across = 0
    if name in ("g", "o"):
        width, across = COLUMNS, column
    transforms = () if name == "rows" else _transforms(value.dtype)
    if value.ndim == 3:
        return plgpu.BlockSpec(
            (CHUNK, width),
            lambda index: (number(index), across),
            transforms=transforms,
        )
    return plgpu.BlockSpec(
        (None, height, width),
        lambda index: (number(index), 0, 0),
        transforms=transforms,
    )


def _shared(height, width, dtype):
    return plgpu.SMEM((1, height, width), dtype, transforms=_transforms(dtype))


def _transforms(dtype):
    """Layout of the tiles that wgmma reads and TMA copies."""
    return (
        plgpu.TilingTransform((8, SWIZZLE // jnp.dtype(dtype).itemsize)),
        plgpu.SwizzleTransform(SWIZZLE),
    )


def _store(refs, suffix, place, state):
    for name, values in state.items():
        to = steps.pieces(refs[f"{name}{suffix}"].at[place])
        for piece, value in zip(to, values, strict=True):
            piece[...] = value


def _turned(value):
    return value.swapaxes(-1, -2)
