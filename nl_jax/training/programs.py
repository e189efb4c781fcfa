"""What a run computes: its first state, and its two compiled programs."""

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nl_jax.models import LanguageModel
from nl_jax.training import mesh as mesh_lib
from nl_jax.training.optimizer import make_optimizer
from nl_jax.training.step import TrainState, make_eval_step, make_train_step
from nl_jax.training.train_config import TrainConfig

_LOG = logging.getLogger(__name__)


class Programs(NamedTuple):
    """The compiled steps of a run."""

    train_step: Callable
    """``(state, tokens [B, T + 1]) -> (state, metrics)``; eats its state."""
    eval_step: Callable
    """``(variables, tokens [B, T + 1], weights [B, T]) -> LossSums``."""
    compile_seconds: dict[str, float]
    """Of each."""


def plan_state(
    config: TrainConfig, model: LanguageModel, mesh: jax.sharding.Mesh
) -> tuple[optax.GradientTransformation, TrainState]:
    """Returns the optimizer, and shape and place of each array of a state."""
    axes = model.logical_axes()
    shapes = jax.eval_shape(lambda: _draw(config, model))
    optimizer = make_optimizer(
        config.optimizer, config.steps, axes, model.parameter_periods(shapes)
    )
    where = mesh_lib.parameter_shardings(mesh, axes, shapes)
    opt_shapes = jax.eval_shape(optimizer.init, shapes)
    places = TrainState(
        where, mesh_lib.state_shardings(mesh, (shapes, where), opt_shapes)
    )
    return optimizer, jax.tree.map(
        lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w),
        TrainState(shapes, opt_shapes),
        places,
    )


def draw_state(
    config: TrainConfig,
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    shapes: TrainState,
) -> TrainState:
    """Draws the state of step 0, each array where ``shapes`` puts it."""

    def begin():
        variables = _draw(config, model)
        return TrainState(variables, optimizer.init(variables))

    return jax.jit(begin, out_shardings=_layout(shapes))()


def compile_programs(
    config: TrainConfig,
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    shapes: TrainState,
    byte_lengths: np.ndarray,
) -> Programs:
    """Compiles ahead of time, so that the time it takes is known.

    Args:
        config: the run.
        model: what is trained.
        optimizer: from :func:`plan_state`, as ``shapes`` is.
        mesh: devices.
        shapes: of the state.
        byte_lengths: bytes of each token, ``[V]``.

    Raises:
        InputError: if the devices cannot share a batch.
    """
    mesh_lib.check_batch(mesh, config.batch_size)
    lengths = np.ones(model.config.vocab_size, np.int32)
    lengths[: len(byte_lengths)] = byte_lengths
    where = mesh_lib.batch_sharding(mesh)
    rows, length = config.batch_size, config.seq_len
    tokens = jax.ShapeDtypeStruct((rows, length + 1), jnp.int32, sharding=where)
    weights = jax.ShapeDtypeStruct((rows, length), jnp.float32, sharding=where)
    seconds: dict[str, float] = {}

    def timed(name: str, function, *arguments: Any) -> Callable:
        began = time.monotonic()
        compiled = function.lower(*arguments).compile()
        seconds[name] = round(time.monotonic() - began, 2)
        _LOG.info("compiled %s in %.1f s", name, seconds[name])
        return compiled

    step = make_train_step(model, optimizer, lengths, config.accumulate)
    evaluate = make_eval_step(model, lengths)
    # Pinned, so that the second step meets what the first one met.
    out = (_layout(shapes), None)
    step = jax.jit(step, donate_argnums=0, out_shardings=out)
    return Programs(
        timed("train_step", step, shapes, tokens),
        timed(
            "eval_step", jax.jit(evaluate), shapes.variables, tokens, weights
        ),
        seconds,
    )


def _draw(config: TrainConfig, model: LanguageModel) -> Any:
    tokens = jnp.zeros((1, 1), jnp.int32)
    return model.init(jax.random.key(config.seed), tokens)


def _layout(shapes: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: leaf.sharding, shapes)
