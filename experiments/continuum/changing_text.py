"""A text whose source changes, and a small model that learns from it."""

import functools
import math
import pathlib
import sysconfig
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared import flags
from experiments.shared.records import Row
from experiments.shared.sweep import grouped
from experiments.shared.training import make_step
from nl_jax.data import DataConfig, load_corpus
from nl_jax.models import build

CHUNK = 16
"""Tokens between steps of the fastest level."""
SETTINGS = {
    "steps": flags.integer(400, "Training steps of the static network."),
    "length": flags.integer(8192, "Bytes of a stream.", 64, multiple_of=CHUNK),
    "rows": flags.integer(4, "Streams of each seed."),
    "segment": flags.integer(1024, "Bytes between changes of the source.", 16),
    "width": flags.integer(32, "Of the model.", multiple_of=8),
}
"""Flags of the text and of the network that learns from it."""
RATE = 0.01


def sources() -> list[bytes]:
    """Returns the English text and the Python code that every CPython has."""
    topics = load_corpus(DataConfig())
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    code = b"".join(
        path.read_bytes() for path in sorted(folder.glob("[a-d]*.py"))
    )
    return [topics.train + topics.held_out, code]


def split(text: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first nine tenths and the rest, as ids."""
    ids = np.frombuffer(text, np.uint8).astype(np.int32)
    cut = len(ids) * 9 // 10
    return ids[:cut], ids[cut:]


def streams(
    texts: list[np.ndarray], rows: int, length: int, segment: int, seed: int
) -> np.ndarray:
    """Returns ``[rows, length]`` ids whose source changes every ``segment``.

    Each row continues each source from its own position.
    """
    rng = np.random.default_rng(seed)
    out = []
    for row in range(rows):
        at = [int(rng.integers(len(text))) for text in texts]
        pieces = []
        for number in range(-(-length // segment)):
            source = (row + number) % len(texts)
            places = np.arange(segment) + at[source]
            pieces.append(texts[source].take(places, mode="wrap"))
            at[source] += segment
        out.append(np.concatenate(pieces)[:length])
    return np.stack(out)


def make_model(width: int, **cms):
    """Returns one block with two levels; the fastest has a period of 16."""
    cms = {"objective": "next_token", "rate": RATE, "hidden": 2.0} | cms
    return build(
        "hope-attention",
        d_model=width,
        n_heads=2,
        n_layers=1,
        attention={"window": 64},
        cms={"token_periods": (CHUNK, 2 * CHUNK)} | cms,
    )


def train(static, texts: list[np.ndarray], steps: int, seed: int):
    """Returns parameters of a static network, trained on both sources."""
    rng = np.random.default_rng(seed)
    variables = jax.jit(static.init)(
        jax.random.key(seed), jnp.zeros((1, 1), jnp.int32)
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.cosine_decay_schedule(5e-3, steps)),
    )

    def loss(variables, tokens):
        return nats(static.apply(variables, tokens)[0], tokens).mean()

    step = make_step(loss, optimizer)
    state = optimizer.init(variables)
    for _ in range(steps):
        rows = []
        for text in texts * 8:
            at = int(rng.integers(len(text) - 129))
            rows.append(text[at : at + 129])
        variables, state, _ = step(variables, state, np.stack(rows))
    return variables


def nats(logits, tokens):
    """Cross-entropy of every token but the first."""
    return optax.softmax_cross_entropy_with_integer_labels(
        logits[:, :-1], tokens[:, 1:]
    )


@functools.partial(jax.jit, static_argnums=0)
def read(model, variables, tokens, rate):
    """Returns losses ``[B, T - 1]`` and steps of the slowest level ``[B]``."""
    cms = dict(variables["params"]["blocks"]["cms"])
    for name in cms:
        if name.endswith("log_rate"):
            cms[name] = jnp.full_like(cms[name], jnp.log(rate / RATE))
    blocks = variables["params"]["blocks"] | {"cms": cms}
    params = variables["params"] | {"blocks": blocks}
    logits, state = model.apply({"params": params}, tokens)
    signal = state.cms.signal
    count = tokens.shape[1] // model.config.cms.periods[-1]
    if signal:
        count = signal.steps[:, 0]
    return nats(logits, tokens), jnp.broadcast_to(count, tokens.shape[:1])


def mean_nats(rows: Sequence[Row]) -> float:
    """Returns the mean loss over seeds; infinite if a run diverged."""
    found = [row["nats"] for row in rows]
    mean = math.inf if None in found else float(np.mean(found))
    return mean if math.isfinite(mean) else math.inf


def at_best_rate(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows of the inner rate with the lowest mean loss."""
    return min(grouped(rows, "rate").values(), key=mean_nats)
