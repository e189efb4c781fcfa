"""What a language model is a nest of: its rows of the level table.

Numbers come from the shapes that the model itself declares; words from its
configuration.
"""

import dataclasses

import jax
import jax.numpy as jnp

from nl_jax.layers.continuum.cms_table import cms_level_rows
from nl_jax.memory import MATRIX_RULES
from nl_jax.nested import LevelRow
from nl_jax.nested.describe import count_bytes, count_parameters
from pallas_kernels import delta_memory, mlp_memory
from pallas_kernels.device import here

_LONG = 2048
"""Tokens of a long sequence."""


def level_rows(model) -> list[LevelRow]:
    """Returns one row per level of a ``LanguageModel``, for one batch row."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    state = jax.eval_shape(lambda p: model.init_state({"params": p}, 1), params)
    mixer = params["blocks"]["mixer"]
    kind = model.config.mixer
    choices = getattr(model.config, kind)
    rows = _MIXER_ROWS[kind](choices, mixer, state.mixers)
    rows += cms_level_rows(
        model.config.cms,
        params["blocks"]["cms"],
        state.cms,
        model.config.n_layers,
    )
    counted = sum(row.parameters for row in rows)
    rows.append(
        LevelRow(
            name="slow parameters",
            memory_of="the training text",
            architecture="projections, norms, embedding",
            objective="next token",
            rule="outer optimizer",
            period=1,
            unit="steps",
            parameters=count_parameters(params) - counted,
            state_bytes=0,
        )
    )
    return rows


def _titans(titans, params, state):
    rule = titans.rule.upper() + (", momentum" if titans.momentum else "")

    def select(prefix):
        return [v for k, v in params.items() if k.startswith(prefix)]

    def row(name, memory_of, prefix, fast, period, runs=""):
        return LevelRow(
            name=name,
            memory_of=memory_of,
            architecture=titans.architecture,
            objective=titans.objective.replace("_", " "),
            rule=rule + (", decay" if titans.decay else ""),
            period=period,
            unit="tokens",
            parameters=count_parameters(select(prefix)),
            state_bytes=count_bytes(fast),
            runs=runs,
        )

    names = ", ".join(titans.generated)
    return [
        row(
            f"titans.generators ({names})",
            "keys to own values",
            "generators_",
            state.generators,
            titans.chunk_size,
        ),
        row(
            "titans.memory",
            "keys to own values",
            "memory_",
            state.memory,
            titans.memory_chunk_size,
            _titans_memory(titans, state),
        ),
    ]


def _titans_memory(titans, state):
    """What runs the chunks of the answering memory here."""
    if titans.shares_recurrence:
        return ""
    if not titans.in_chunks:
        return "chunked"
    gates = 3 if titans.momentum else 2
    size = titans.memory_chunk_size
    return _memory_scan(titans, state.memory, state.tails, gates, size)


def _memory_scan(config, memory, tails, gates, chunk_size):
    if config.implementation is not None:
        return config.implementation
    matrices = (*memory.weights, *(memory.momentum or ()))
    matrices = [jax.ShapeDtypeStruct(w.shape[-3:], w.dtype) for w in matrices]
    heads = matrices[0].shape[0]
    width = tails["q"].shape[-1] // heads
    x = jax.ShapeDtypeStruct((heads, _LONG, width), tails["q"].dtype)
    gate = jax.ShapeDtypeStruct(x.shape[:-1], jnp.float32)
    return mlp_memory.implementation_for(
        here(), matrices, [x] * 3, [gate] * gates, chunk_size=chunk_size
    )


def _attention(attention, params, state):
    learned = [v for k, v in params.items() if k.startswith("persistent_")]
    tokens = f"the last {attention.window} tokens"
    if learned:
        tokens += f", {attention.persistent} learned ones"
    return [
        LevelRow(
            name="attention",
            memory_of=tokens,
            architecture="non-parametric",
            objective="L2, Nadaraya-Watson",
            rule="closed form",
            period=0,
            unit="tokens",
            parameters=count_parameters(learned),
            state_bytes=count_bytes((state.keys, state.values)),
        )
    ]


def _matrix(matrix, params, state):
    del params
    rule = MATRIX_RULES[matrix.rule]
    decay = "" if matrix.decay == "none" else f", {matrix.decay} decay"
    return [
        LevelRow(
            name="matrix.memory",
            memory_of="keys to values",
            architecture="linear",
            objective=rule.objective,
            rule=f"{rule.name}{decay}",
            period=1,
            unit="tokens",
            parameters=0,
            state_bytes=count_bytes((state.memory, state.normalizer)),
            runs=_delta_memory(matrix, state),
        )
    ]


def _delta_memory(matrix, state):
    """What runs the recurrence of a matrix memory here."""
    if matrix.decay == "channel":
        return ""
    if matrix.implementation is not None:
        return matrix.implementation
    heads, width = state.memory.shape[-4], state.memory.shape[-1]

    def shape(*dims, dtype=jnp.float32):
        return jax.ShapeDtypeStruct((heads, *dims), dtype)

    w, gate = shape(width, width), shape(_LONG)
    x = shape(_LONG, width, dtype=state.tails["q"].dtype)
    return delta_memory.implementation_for(
        here(), w, None, x, x, x, gate, gate, chunk_size=matrix.chunk_size
    )


_KEPT = {
    "none": "",
    "decay": ", decay",
    "channel": ", decay by channel",
    "mean": ", mean of a chunk",
    "l2": ", weight decay",
    "elastic": ", elastic net",
    "lq": ", l_q norm",
    "kl": ", KL on a simplex",
}


def _deep(deep, params, state):
    names = {"gd": "GD", "dgd": "DGD", "muon": "Muon"}
    rule = names[deep.rule] + (", momentum" if deep.momentum else "")
    seen = "" if deep.degree == 1 else f", powers to {deep.degree}"
    pairs = "keys to values"
    if deep.window > 1:
        pairs += f", the last {deep.window}"
    initial = [v for k, v in params.items() if k.startswith("memory_")]
    return [
        LevelRow(
            name="deep.memory",
            memory_of=pairs,
            architecture=deep.architecture.replace("_", " ") + seen,
            objective=deep.objective.replace("_", " "),
            rule=rule + _KEPT[deep.retention],
            period=deep.chunk_size,
            unit="tokens",
            parameters=count_parameters(initial),
            state_bytes=count_bytes(state.memory),
            runs=_deep_memory(deep, state),
        )
    ]


def _deep_memory(deep, state):
    """What runs the chunks of a deep memory here."""
    if not deep.memory.in_chunks:
        return ""
    gates = 3 if deep.momentum else 2
    memory, tails = state.memory.memory, state.tails
    return _memory_scan(deep, memory, tails, gates, deep.chunk_size)


def _titans_attention(config, params, state):
    memory = _deep(config.memory, params["memory"], state.memory)
    attention = _attention(
        config.attention_layer, params["attention"], state.attention
    )
    if config.combine == "context":
        size, learned = config.memory.chunk_size, config.attention.persistent
        tokens = f"its {size} tokens and answers to them, {learned} learned"
        attention = [dataclasses.replace(attention[0], memory_of=tokens)]
    return memory + attention


def _mamba(mamba, params, state):
    del params
    return [
        LevelRow(
            name="mamba.state",
            memory_of="ports B to inputs, per channel",
            architecture=f"linear, {mamba.state_size} to 1",
            objective="dot product",
            rule="GD, channel decay",
            period=1,
            unit="tokens",
            parameters=0,
            state_bytes=count_bytes(state.hidden),
        )
    ]


def _samba(samba, params, state):
    mlp = LevelRow(
        name="samba.mlp",
        memory_of="tokens of its period",
        architecture="SwiGLU MLP",
        objective="next token",
        rule="outer optimizer",
        period=1,
        unit="steps",
        parameters=count_parameters(params["mlp"]),
        state_bytes=0,
    )
    return [
        *_mamba(samba.mamba, params["mamba"], state.mamba),
        mlp,
        *_attention(samba.attention, params["attention"], state.attention),
    ]


def _srwm(srwm, params, state):
    del srwm
    return [
        LevelRow(
            name="srwm.memory",
            memory_of="own keys to own values",
            architecture="linear, generates itself",
            objective="l2",
            rule="GD",
            period=1,
            unit="tokens",
            parameters=count_parameters(params["memory"]),
            state_bytes=count_bytes(state.memory),
        )
    ]


def _lstm(lstm, params, state):
    del lstm, params
    return [
        LevelRow(
            name="lstm.cells",
            memory_of="the tokens before",
            architecture="vector",
            objective="none",
            rule="gated sum",
            period=1,
            unit="tokens",
            parameters=0,
            state_bytes=count_bytes(state),
        )
    ]


_MIXER_ROWS = {
    "titans": _titans,
    "attention": _attention,
    "matrix": _matrix,
    "deep": _deep,
    "titans_attention": _titans_attention,
    "mamba": _mamba,
    "samba": _samba,
    "srwm": _srwm,
    "lstm": _lstm,
}
