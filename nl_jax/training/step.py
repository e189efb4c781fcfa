"""Training and evaluation steps, their loss, and the initial state.

Losses are sums, which can be added over batches and devices. The steps are pure
functions; :func:`compile_programs` compiles them for a mesh ahead of time.
"""

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nl_jax.array_typing import Losses
from nl_jax.data import Batch
from nl_jax.models import LanguageModel
from nl_jax.training import mesh as mesh_lib
from nl_jax.training.losses import LossSums, token_losses
from nl_jax.training.matching import put_weights
from nl_jax.training.optimizer import make_optimizer
from nl_jax.training.train_config import TrainConfig
from nl_jax.training.train_state import TrainState, begin_memory

_LOG = logging.getLogger(__name__)


def make_train_step(
    model: Any,
    optimizer: optax.GradientTransformation,
    byte_lengths: np.ndarray,
    accumulate: int = 1,
) -> Callable:
    """Returns ``(state, batch) -> (state, metrics)``.

    The loss is the mean over all targets of the batch that count, by weight.
    With ``state.memory`` a row whose first segment id is the last one of its
    memory goes on from there; gradients stop at that cut.

    Args:
        model: a model, of which ``apply`` is used.
        optimizer: complete optimizer, learning rate included.
        byte_lengths: bytes of each token, padded to the model's vocabulary.
        accumulate: number of parts a batch is processed in; must divide ``B``.
    """

    def loss(variables, batch, memory, count):
        """Returns a share of the mean loss: ``count`` is the whole batch's."""
        losses, after = predict(model, variables, batch, memory)
        weights = batch.target_weights()
        targets = batch.tokens[:, 1:]
        sums = LossSums.of(losses, targets, byte_lengths, weights)
        # Special tokens are learned too, though the sums leave them out.
        nats = (losses if weights is None else losses * weights).sum()
        # What nothing goes on from is not kept.
        return nats / count, (sums, None if memory is None else after)

    def gradients(variables, batch, memory):
        weights = batch.target_weights()
        count = batch.tokens[:, 1:].size
        if weights is not None:
            total = weights.sum()
            count = jnp.where(total == 0, 1.0, total)
        differentiate = jax.grad(loss, has_aux=True)
        if accumulate == 1:
            return differentiate(variables, batch, memory, count)
        # A part takes rows from all over the batch: each stays on its device.
        parts = jax.tree.map(
            lambda a: a.reshape(-1, accumulate, *a.shape[1:]).swapaxes(0, 1),
            (batch, memory),
        )

        def add(total, part):
            grads, (sums, after) = differentiate(variables, *part, count)
            return jax.tree.map(jnp.add, total, (grads, sums)), after

        zeros = jax.tree.map(jnp.zeros_like, variables)
        sums = LossSums(*jnp.zeros((3,), jnp.float32))
        (grads, sums), after = jax.lax.scan(add, (zeros, sums), parts)
        after = jax.tree.map(
            lambda a: a.swapaxes(0, 1).reshape(-1, *a.shape[2:]), after
        )
        return grads, (sums, after)

    def step(state: TrainState, batch: Batch):
        grads, (sums, memory) = gradients(state.variables, batch, state.memory)
        updates, opt_state = optimizer.update(
            grads, state.optimizer, state.variables
        )
        variables = optax.apply_updates(state.variables, updates)
        metrics = {"sums": sums, "grad_norm": optax.global_norm(grads)}
        return TrainState(variables, opt_state, memory), metrics

    return step


def predict(
    model: Any, variables: Any, batch: Batch, state: Any = None
) -> tuple[Losses, Any]:
    """Returns the losses of a batch's targets, and the state before the last.

    Args:
        model: model, of which ``apply`` is used.
        variables: parameters of the model.
        batch: rows of tokens.
        state: state that the rows go on from; ``None`` starts new contexts.
    """
    ids = {}
    if batch.segment_ids is not None:
        ids = {"segment_ids": batch.segment_ids[:, :-1]}
    logits, state = model.apply(variables, batch.tokens[:, :-1], state, **ids)
    return token_losses(logits, batch.tokens[:, 1:]), state


class Programs(NamedTuple):
    """The compiled steps of a run."""

    train_step: Callable
    """``(state, batch) -> (state, metrics)``; donates ``state``."""
    eval_step: Callable
    """``(variables, tokens [B, T + 1]) -> (losses [B, T], None)``."""
    compile_seconds: dict[str, float]
    """Compile time of each step, by its name."""


def plan_state(
    config: TrainConfig, model: LanguageModel, mesh: jax.sharding.Mesh
) -> tuple[optax.GradientTransformation, TrainState]:
    """Returns the optimizer, and the state's shapes with their shardings.

    Raises:
        InputError: if the batch cannot be split evenly over the devices, or
            rows not over ``sequence``.
    """
    mesh_lib.check_batch(mesh, config.batch_size, config.accumulate)
    parts = mesh.shape.get("sequence", 1)
    sizes = dataclasses.replace(config.mesh, sequence=parts)
    sizes.check_sequence(config.model, config.data.reading, config.seq_len)
    if config.optimizer.warmup_steps > config.steps:
        _LOG.warning(
            "the learning rate rises until the last step: "
            "optimizer.warmup_steps=%d is more than steps=%d",
            config.optimizer.warmup_steps,
            config.steps,
        )
    axes = model.logical_axes()
    shapes = jax.eval_shape(lambda: _draw(config, model))
    optimizer = make_optimizer(
        config.optimizer, config.steps, axes, model.parameter_periods(shapes)
    )
    rules = config.mesh.parameter_axes
    where = mesh_lib.parameter_shardings(mesh, axes, shapes, rules)
    opt_shapes = jax.eval_shape(optimizer.init, shapes)
    of = config.data.reading, config.batch_size
    memory = jax.eval_shape(lambda v: begin_memory(model, v, *of), shapes)
    places = TrainState(
        where,
        mesh_lib.state_shardings(mesh, (shapes, where), opt_shapes),
        jax.tree.map(lambda _: mesh_lib.batch_sharding(mesh), memory),
    )
    return optimizer, jax.tree.map(
        lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w),
        TrainState(shapes, opt_shapes, memory),
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

    def begin(variables=None):
        variables = variables or _draw(config, model)
        of = config.data.reading, config.batch_size
        memory = begin_memory(model, variables, *of)
        return TrainState(variables, optimizer.init(variables), memory)

    layout = _layout(shapes)
    if initial is None:
        return jax.jit(begin, out_shardings=layout)()
    draw = jax.jit(lambda: _draw(config, model), out_shardings=layout.variables)
    path = config.init_from or "memory"
    drawn, found = draw(), initial["params"]
    params = put_weights(path, found, drawn["params"])
    variables = jax.device_put(drawn | {"params": params}, layout.variables)
    return jax.jit(begin, out_shardings=layout)(variables)


def jit_train_step(
    config: TrainConfig,
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    shapes: TrainState,
    byte_lengths: np.ndarray,
) -> Any:
    """Returns the jitted training step of a run; see :func:`compile_programs`.

    It is to be traced within ``mesh.computing(config.mesh)``.
    """
    lengths = np.ones(model.config.vocab_size, np.int32)
    lengths[: len(byte_lengths)] = byte_lengths
    step = make_train_step(model, optimizer, lengths, config.accumulate)
    # Fixed shardings, so that every step's output fits the next step's input.
    out = (_layout(shapes), None)
    return jax.jit(step, donate_argnums=0, out_shardings=out)


def compile_programs(
    config: TrainConfig,
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    shapes: TrainState,
    byte_lengths: np.ndarray,
    batch: Batch,
) -> Programs:
    """Compiles the steps of a run ahead of time, and times the compilation.

    Args:
        config: configuration of the run.
        model: model to train.
        optimizer: optimizer from :func:`plan_state`.
        mesh: devices to compile for.
        shapes: shapes and shardings of the state, from :func:`plan_state`.
        byte_lengths: bytes of each token, ``[V]``.
        batch: this process's rows of a batch; others are of the same shapes.
    """
    where = mesh_lib.batch_sharding(mesh)
    rows = config.batch_size
    batch = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(
            (rows, *a.shape[1:]), a.dtype, sharding=where
        ),
        batch,
    )
    seconds: dict[str, float] = {}

    def timed(name: str, function, *arguments: Any) -> Callable:
        began = time.monotonic()
        with mesh_lib.computing(config.mesh):
            compiled = function.lower(*arguments).compile()
        seconds[name] = round(time.monotonic() - began, 2)
        _LOG.info("compiled %s in %.1f s", name, seconds[name])
        return compiled

    # Every process gets all losses, not only those of its rows.
    evaluate = jax.jit(
        lambda variables, tokens: (
            predict(model, variables, Batch(tokens))[0],
            None,
        ),
        out_shardings=(mesh_lib.replicated(mesh), None),
    )
    step = jit_train_step(config, model, optimizer, shapes, byte_lengths)
    return Programs(
        timed("train_step", step, shapes, batch),
        timed("eval_step", evaluate, shapes.variables, batch.tokens),
        seconds,
    )


def _draw(config: TrainConfig, model: LanguageModel) -> Any:
    tokens = jnp.zeros((1, 1), jnp.int32)
    return model.init(jax.random.key(config.seed), tokens)


def _layout(shapes: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: leaf.sharding, shapes)
