"""Language models for the benchmark: variants, equal sizes, and steps."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nl_jax.errors import InputError
from nl_jax.models import LanguageModel, ModelConfig, configure, names
from nl_jax.models.language_model import ModelState, Variables
from nl_jax.nested.level_table import count_parameters
from nl_jax.training import token_losses

_LINEAR = {"architecture": "linear"}
_SHARED = _LINEAR | {"value_norm": "input", "momentum": False}
_MEMORIES = {
    "hope": {},
    "hope-linear": _LINEAR,
    "hope-shared": _SHARED,
    # Storing the weights of every chunk would take 19 GB at 16,384 tokens.
    # A stream or wider heads would leave no parameters for the levels.
    "hope-mlp": {
        "architecture": "mlp",
        "remat": 8,
        "stream_width": 0.0,
        "output_gate": False,
        "head_width": 0,
    },
}


@dataclasses.dataclass(frozen=True)
class ModelSizes:
    """Sizes that all timed models share."""

    width: int
    layers: int
    heads: int
    vocab: int


def variants(chunks: tuple[int, ...]) -> dict[str, tuple[str, dict]]:
    """Returns ``(name in the registry, overrides)`` of all models to time.

    These are every registered model with its defaults, and Hope with each kind
    of memory and chunk size: residual matrices (the default), matrices,
    matrices that share one recurrence (``value_norm="input"`` without
    momentum), and MLPs.

    Example:
        >>> variants((64,))["hope-mlp/64"][1]["titans"]["architecture"]
        'mlp'
    """
    found: dict[str, tuple[str, dict]] = {
        name: (name, {}) for name in names() if name != "hope"
    }
    for memory, choices in _MEMORIES.items():
        for chunk in chunks:
            sizes = {"chunk_size": chunk, "memory_chunk_size": chunk}
            found[f"{memory}/{chunk}"] = ("hope", {"titans": choices | sizes})
    return found


def recurrent(config: ModelConfig) -> bool:
    """Returns whether a model's state is smaller than its context."""
    return config.mixer != "attention"


def parameters(model: LanguageModel) -> int:
    """Returns the number of slow parameters."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    return count_parameters(shapes)


def equal_models(
    wanted: Mapping[str, tuple[str, dict]], sizes: ModelSizes, window: int
) -> dict[str, LanguageModel]:
    """Builds models with as many parameters as ``transformer``.

    MLPs are narrowed or widened to compensate for the size of the mixers.

    Args:
        wanted: from :func:`variants`.
        sizes: of all models.
        window: tokens that attention sees.

    Raises:
        InputError: if a model is larger even without MLPs.
    """
    fields = {
        "d_model": sizes.width,
        "n_layers": sizes.layers,
        "n_heads": sizes.heads,
        "vocab_size": sizes.vocab,
        "attention": {"window": window},
    }
    target = parameters(LanguageModel(configure("transformer", **fields)))
    models = {}
    for label, (name, overrides) in wanted.items():
        config = configure(name, **fields | overrides)
        missing = target - parameters(LanguageModel(config))
        levels = len(config.cms.periods) * sizes.layers
        per_hidden = 3 * sizes.width**2 * levels
        hidden = config.cms.hidden + missing / per_hidden
        if round(hidden * sizes.width) < 1:
            raise InputError(
                f"{label} has more parameters than transformer "
                f"({target:,}) even without its MLPs; lower --width or --heads"
            )
        models[label] = LanguageModel(configure(config, cms={"hidden": hidden}))
    return models


def start(
    model: LanguageModel, shape: tuple[int, int]
) -> tuple[Variables, jax.Array]:
    """Returns random parameters, and random tokens of the shape."""
    vocab = model.config.vocab_size
    tokens = jax.random.randint(jax.random.key(0), shape, 0, vocab)
    variables = jax.jit(model.init)(jax.random.key(1), tokens[:, :1])
    return variables, tokens


def training_step(
    model: LanguageModel, batch: int, length: int
) -> Callable[[], Any]:
    """Returns forward and backward of the next-token loss, compiled."""
    variables, tokens = start(model, (batch, length + 1))

    def loss(variables, tokens):
        logits, _ = model.apply(variables, tokens[:, :-1])
        return token_losses(logits, tokens[:, 1:]).mean()

    step = jax.jit(jax.grad(loss))
    jax.block_until_ready(step(variables, tokens))
    return lambda: step(variables, tokens)


class Decoder:
    """Reads a stream in pieces, and decodes from it token by token.

    Args:
        model: the model that reads.
        piece: tokens of a piece.
    """

    def __init__(self, model: LanguageModel, piece: int):
        self._variables, self._tokens = start(model, (1, piece))
        self._apply = jax.jit(model.apply)
        self._fresh = model.init_state(self._variables, 1)

    def states(self, positions: Sequence[int]) -> dict[int, ModelState]:
        """Returns the state after each number of tokens, in rising order.

        Numbers below the piece are read token by token; the others are
        multiples of the piece.
        """
        state, at, found = self._fresh, 0, {}
        piece = self._tokens.shape[1]
        for position in positions:
            if position < piece:
                for _ in range(position):
                    state = self.step(state)
                found[position] = state
                state = self._fresh
                continue
            for _ in range((position - at) // piece):
                _, state = self._apply(self._variables, self._tokens, state)
            at = position
            found[position] = state
        return found

    def step(self, state: ModelState) -> ModelState:
        """Reads one token."""
        token = self._tokens[:, :1]
        return self._apply(self._variables, token, state)[1]

    def decode(self, state: ModelState, calls: int) -> ModelState:
        """Reads tokens one at a time."""
        for _ in range(calls):
            state = self.step(state)
        return state


def crossing(ratios: Mapping[int, float]) -> float | None:
    """Returns the length at which a ratio that grows with it reaches 1.

    Between measured lengths it interpolates the logarithms of both. A ratio
    that is 1 at the first length returns that length, and a ratio that never
    reaches 1 returns ``None``.

    Example:
        >>> round(crossing({1024: 0.5, 4096: 2.0}))
        2048
    """
    lengths = sorted(ratios)
    if ratios[lengths[0]] >= 1:
        return float(lengths[0])
    for short, long in itertools.pairwise(lengths):
        if ratios[long] >= 1:
            below, above = jnp.log(jnp.array([ratios[short], ratios[long]]))
            share = float(-below / (above - below))
            return short * (long / short) ** share
    return None
