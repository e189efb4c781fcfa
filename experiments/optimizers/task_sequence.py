"""Regressions with orthogonal inputs, learned one after another."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

_EXAMPLES, _BATCH, _OUTPUTS = 128, 16, 8  # Per task, per step, of the network.


def make_data(seed, tasks, dim, hidden):
    """Draws the tasks and a network, float32.

    Args:
        seed: of all random numbers.
        tasks: number of tasks ``K``.
        dim: dimension ``d`` of the subspace of a task; together the subspaces
            span the input.
        hidden: units between two layers, 0 for one layer.

    Returns:
        inputs ``[K, N, K d]``, targets ``[K, N, n]`` that are linear in them,
        and a list of layers ``[d_in, d_out]``.
    """
    rng = np.random.default_rng(seed)
    width = tasks * dim
    basis = np.linalg.qr(rng.normal(size=(width, width)))[0]
    inputs = rng.normal(size=(tasks, _EXAMPLES, dim)) @ basis.reshape(
        tasks, dim, width
    )
    maps = rng.normal(size=(tasks, width, _OUTPUTS)) / dim**0.5
    layers = [rng.normal(size=(width, hidden or _OUTPUTS)) / dim**0.5]
    if hidden:
        layers.append(rng.normal(size=(hidden, _OUTPUTS)) / hidden**0.5)
    return jax.tree.map(np.float32, (inputs, inputs @ maps, layers))


def loss(layers, inputs, targets):
    """Half the mean square error of the network, ReLU between layers."""
    first, *rest = layers
    y = inputs @ first
    for layer in rest:
        y = jax.nn.relu(y) @ layer
    return 0.5 * jnp.square(y - targets).sum(-1).mean()


def learn(make, progress, rate, seed, data, steps):
    """Learns the tasks in turn, each until it has made the progress.

    Args:
        make: returns the optax transformation for a rate; one state serves all
            tasks.
        progress: share by which the first loss of a task, on all its examples,
            has to fall.
        rate: learning rate.
        seed: of the batches.
        data: of :func:`make_data`.
        steps: maximum per task.

    Returns:
        losses of all tasks (columns) after each (rows), ``[K, K]``, in units of
        their values before the first task; the steps of all tasks together; and
        whether all tasks made the progress. After a task that does not make it,
        nothing more is learned.
    """
    inputs, targets, layers = jax.tree.map(jnp.asarray, data)
    tx = make(rate)
    rng = jax.random.key(seed)

    def all_losses(layers):
        return jax.vmap(loss, (None, 0, 0))(layers, inputs, targets)

    first = all_losses(layers)

    def task(carry, i):
        layers, state, allowed = carry
        goal = (1 - progress) * first[i]

        def unfinished(carry):
            layers, _, count = carry
            far = loss(layers, inputs[i], targets[i]) > goal
            return far & (count < allowed)

        def step(carry):
            layers, state, count = carry
            draw = jax.random.fold_in(jax.random.fold_in(rng, i), count)
            rows = jax.random.randint(draw, (_BATCH,), 0, _EXAMPLES)
            grads = jax.grad(loss)(layers, inputs[i, rows], targets[i, rows])
            updates, state = tx.update(grads, state, layers)
            return optax.apply_updates(layers, updates), state, count + 1

        layers, state, count = jax.lax.while_loop(
            unfinished, step, (layers, state, 0)
        )
        losses = all_losses(layers)
        allowed = jnp.where(losses[i] <= goal, allowed, 0)  # False for NaN.
        return (layers, state, allowed), (losses / first, count)

    (_, _, allowed), (losses, counts) = jax.lax.scan(
        task, (layers, tx.init(layers), steps), jnp.arange(len(inputs))
    )
    return losses, counts.sum(), allowed > 0


def forgotten(losses):
    """Returns the mean rise of a task's loss since its end, without the last.

    Args:
        losses: ``[..., K, K]``, rows after each task, columns of each task.

    Example:
        >>> float(forgotten([[0.1, 1.0], [0.4, 0.1]]).round(3))
        0.3
    """
    losses = np.asarray(losses)
    own = np.diagonal(losses, axis1=-2, axis2=-1)
    return (losses[..., -1, :] - own)[..., :-1].mean(-1)
