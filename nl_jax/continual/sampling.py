"""Sampling from a model, one token at a time and at constant memory."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nl_jax.checks import check_count, check_ids, check_number
from nl_jax.errors import InputError


class SamplerState(NamedTuple):
    """Complete state of a :class:`Sampler`."""

    fast: Any
    """State of the model, for one row."""
    logits: jax.Array
    """Logits of the next token, ``[V]``."""
    key: jax.Array
    """Random key, as returned by ``jax.random.key_data``."""


def sample_token(
    rng: jax.Array, logits: Float[Array, " V"], temperature, top_p
) -> jax.Array:
    """Draws from the fewest tokens whose total probability is ``top_p``.

    Args:
        rng: random key.
        logits: logits of the next token.
        temperature: divisor of the logits; 0 takes the likeliest token.
        top_p: in (0, 1]; the likeliest token is always in the set.
    """
    scaled = logits / jnp.maximum(temperature, 1e-6)
    order = jnp.argsort(-scaled)
    mass = jax.nn.softmax(scaled[order])
    before = jnp.cumsum(mass) - mass
    kept = jnp.where(before < top_p, scaled[order], -jnp.inf)
    drawn = order[jax.random.categorical(rng, kept)]
    return jnp.where(temperature > 0, drawn, order[0]).astype(jnp.int32)


def first_state(model: Any, variables: Any, seed: int = 0) -> SamplerState:
    """Returns the state of a sampler that has not read any tokens."""
    return SamplerState(
        model.init_state(variables, 1),
        jnp.zeros(model.config.vocab_size, jnp.float32),
        jax.random.key_data(jax.random.key(seed)),
    )


class Sampler:
    """Sampler whose ``state`` can be kept or saved after any token.

    Args:
        model: model from :func:`nl_jax.models.build`.
        variables: parameters of the model.
        vocab_size: number of ids to draw from; larger ids only pad the model.
        seed: seed of the random key.

    Raises:
        InputError: for a ``vocab_size`` that the model does not have.
    """

    def __init__(
        self,
        model: Any,
        variables: Any,
        *,
        vocab_size: int | None = None,
        seed: int = 0,
    ):
        self._model, self._variables = model, variables
        most = model.config.vocab_size
        self._allowed = most if vocab_size is None else vocab_size
        check_count("vocab_size", self._allowed)
        check_count("seed", seed, 0, 2**32)
        if self._allowed > most:
            raise InputError(f"vocab_size={vocab_size} must be at most {most}")
        self.state: SamplerState = _first(model, variables, seed)

    def feed(self, tokens: Iterable[int]) -> None:
        """Reads tokens, without drawing.

        Raises:
            InputError: if not all tokens are ids of the model; none is read.
        """
        listed = isinstance(tokens, Iterable) and not hasattr(tokens, "ndim")
        ids = np.asarray(list(tokens) if listed else tokens)
        if ids.size:
            if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
                raise InputError(
                    f"tokens is {ids.dtype}{list(ids.shape)}; needs integers, "
                    "[n]"
                )
            check_ids("tokens", ids, self._model.config.vocab_size)
        for token in ids:
            self._advance(int(token), 1.0, 1.0)

    def draw(
        self, count: int, *, temperature: float = 1.0, top_p: float = 1.0
    ) -> Iterator[int]:
        """Draws ``count`` tokens, and reads each before the next is drawn.

        Args:
            count: number of tokens.
            temperature: as in :func:`sample_token`.
            top_p: as in :func:`sample_token`.

        Raises:
            InputError: for a ``count`` or ``temperature`` below 0, or a
                ``top_p`` outside (0, 1].
        """
        check_count("count", count, 0)
        check_number("temperature", temperature)
        check_number("top_p", top_p)
        if temperature < 0:
            raise InputError(f"temperature={temperature} must be >= 0")
        if not 0 < top_p <= 1:
            raise InputError(f"top_p={top_p} must be in (0, 1]")
        return (
            int(self._advance(-1, temperature, top_p)) for _ in range(count)
        )

    def _advance(self, given: int, temperature: float, top_p: float):
        self.state, token = _step(
            self._model,
            self._allowed,
            self._variables,
            self.state,
            jnp.int32(given),
            jnp.float32(temperature),
            jnp.float32(top_p),
        )
        return token


_first = jax.jit(first_state, static_argnums=(0, 2))


# Not donated, since users may keep any state and go on from it.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _step(model, allowed, variables, state, given, temperature, top_p):
    """Reads the token ``given``, or one that it draws if that is negative.

    One program for both needs only one compilation.
    """
    key, draw = jax.random.split(jax.random.wrap_key_data(state.key))
    ids = jnp.arange(model.config.vocab_size)
    logits = jnp.where(ids < allowed, state.logits, -jnp.inf)
    drawn = sample_token(draw, logits, temperature, top_p)
    token = jnp.where(given >= 0, given, drawn)
    logits, fast = model.apply(variables, token[None, None], state.fast)
    after = SamplerState(
        fast,
        logits[0, 0].astype(jnp.float32),
        jnp.where(given >= 0, state.key, jax.random.key_data(key)),
    )
    return after, token
