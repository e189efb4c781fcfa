"""Training and evaluation steps, their loss, and the initial state.

Losses are sums, which can be added over batches and devices. The steps are pure
functions; :func:`compile_programs` compiles them for a mesh ahead of time.
"""

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
from nl_jax.training.evaluation import LossSums, predict
from nl_jax.training.matching import put_weights
from nl_jax.training.optimizer import make_optimizer
from nl_jax.training.train_config import TrainConfig

_LOG = logging.getLogger(__name__)


class TrainState(NamedTuple):
    """Parameters and optimizer state, updated by each training step."""

    variables: Any
    """Parameters of the model, ``{"params": ...}``."""
    optimizer: Any
    """State of the optimizer."""


def make_train_step(
    model: Any,
    optimizer: optax.GradientTransformation,
    byte_lengths: np.ndarray,
    accumulate: int = 1,
) -> Callable:
    """Returns ``(state, tokens [B, T + 1]) -> (state, metrics)``.

    Args:
        model: model whose ``apply`` starts a new context in every row.
        optimizer: complete optimizer, learning rate included.
        byte_lengths: bytes of each token, padded to the model's vocabulary.
        accumulate: number of parts a batch is processed in; must divide ``B``.
    """

    def loss(variables, tokens):
        losses, _ = predict(model, variables, tokens)
        return losses.mean(), LossSums.of(losses, tokens[:, 1:], byte_lengths)

    def gradients(variables, tokens):
        if accumulate == 1:
            (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(
                variables, tokens
            )
            return grads, sums
        # A part takes rows from all over the batch: each stays on its device.
        parts = tokens.reshape(-1, accumulate, tokens.shape[1]).swapaxes(0, 1)

        def add(total, part):
            grads, sums = jax.grad(loss, has_aux=True)(variables, part)
            return jax.tree.map(jnp.add, total, (grads, sums)), None

        zeros = jax.tree.map(jnp.zeros_like, variables)
        sums = LossSums(*jnp.zeros((3,), jnp.float32))
        (grads, sums), _ = jax.lax.scan(add, (zeros, sums), parts)
        return jax.tree.map(lambda g: g / accumulate, grads), sums

    def step(state: TrainState, tokens):
        grads, sums = gradients(state.variables, tokens)
        updates, opt_state = optimizer.update(
            grads, state.optimizer, state.variables
        )
        variables = optax.apply_updates(state.variables, updates)
        metrics = {"sums": sums, "grad_norm": optax.global_norm(grads)}
        return TrainState(variables, opt_state), metrics

    return step


class Programs(NamedTuple):
    """The compiled steps of a run."""

    train_step: Callable
    """``(state, tokens [B, T + 1]) -> (state, metrics)``; donates ``state``."""
    eval_step: Callable
    """``(variables, tokens [B, T + 1]) -> (losses [B, T], None)``."""
    compile_seconds: dict[str, float]
    """Compile time of each step, by its name."""


def plan_state(
    config: TrainConfig, model: LanguageModel, mesh: jax.sharding.Mesh
) -> tuple[optax.GradientTransformation, TrainState]:
    """Returns the optimizer, and the state's shapes with their shardings."""
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
    initial: Any = None,
) -> TrainState:
    """Initialises the state of step 0, with the shardings of ``shapes``.

    Parameters that have a counterpart in ``initial`` are those there.
    """

    def begin():
        variables = _draw(config, model)
        return TrainState(variables, optimizer.init(variables))

    layout = _layout(shapes)
    if initial is None:
        return jax.jit(begin, out_shardings=layout)()
    draw = jax.jit(lambda: _draw(config, model), out_shardings=layout.variables)
    path = config.init_from or "memory"
    drawn, found = draw(), initial["params"]
    params = put_weights(path, found, drawn["params"])
    variables = jax.device_put(drawn | {"params": params}, layout.variables)
    return jax.jit(
        lambda variables: TrainState(variables, optimizer.init(variables)),
        out_shardings=layout,
    )(variables)


def compile_programs(
    config: TrainConfig,
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    shapes: TrainState,
    byte_lengths: np.ndarray,
) -> Programs:
    """Compiles the steps of a run ahead of time, and times the compilation.

    Args:
        config: configuration of the run.
        model: model to train.
        optimizer: optimizer from :func:`plan_state`.
        mesh: devices to compile for.
        shapes: shapes and shardings of the state, from :func:`plan_state`.
        byte_lengths: bytes of each token, ``[V]``.

    Raises:
        InputError: if the batch cannot be split evenly over the devices.
    """
    mesh_lib.check_batch(mesh, config.batch_size)
    lengths = np.ones(model.config.vocab_size, np.int32)
    lengths[: len(byte_lengths)] = byte_lengths
    where = mesh_lib.batch_sharding(mesh)
    rows, length = config.batch_size, config.seq_len
    tokens = jax.ShapeDtypeStruct((rows, length + 1), jnp.int32, sharding=where)
    seconds: dict[str, float] = {}

    def timed(name: str, function, *arguments: Any) -> Callable:
        began = time.monotonic()
        compiled = function.lower(*arguments).compile()
        seconds[name] = round(time.monotonic() - began, 2)
        _LOG.info("compiled %s in %.1f s", name, seconds[name])
        return compiled

    step = make_train_step(model, optimizer, lengths, config.accumulate)
    # Every process gets all losses, not only those of its rows.
    evaluate = jax.jit(
        lambda variables, tokens: (predict(model, variables, tokens)[0], None),
        out_shardings=(mesh_lib.replicated(mesh), None),
    )
    # Fixed shardings, so that every step's output fits the next step's input.
    out = (_layout(shapes), None)
    step = jax.jit(step, donate_argnums=0, out_shardings=out)
    return Programs(
        timed("train_step", step, shapes, tokens),
        timed("eval_step", evaluate, shapes.variables, tokens),
        seconds,
    )


def _draw(config: TrainConfig, model: LanguageModel) -> Any:
    tokens = jnp.zeros((1, 1), jnp.int32)
    return model.init(jax.random.key(config.seed), tokens)


def _layout(shapes: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: leaf.sharding, shapes)
