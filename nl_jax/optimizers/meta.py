r"""Meta-learning of an optimizer's initial state.

The initial memory of a deep optimizer and its rates are slow parameters of a
slower level (knowledge transfer by initialisation, section 3.3 of arXiv
2512.24695). :func:`meta_learn` learns them by gradient descent through unrolled
training on tasks,

.. math:: \min_{\theta}\; \mathbb E_{\text{task}}\;
   \frac1T \sum_{t \le T} L_{\text{task}}(W_t(\theta)),

where :math:`\theta` is the optimizer's initial state. Learning rates and decay
rates are part of the state, and are learned, under
``optax.inject_hyperparams``.

Gradients are exact, with second-order terms, within windows of ``truncation``
steps and stop between windows. The initial memory therefore has a gradient from
the first window only, a hyperparameter from every window. Every step and every
window is rematerialised: memory holds the states of one window and those at the
windows' starts. Weakness: as in any recurrence, long windows of a fast inner
loop have exploding gradients; clip them in ``outer_optimizer``.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nl_jax.checks import check_count, leaf_name

_PATIENCE = 10
Loss = Callable[[Any, jax.Array], jax.Array]
TaskDistribution = Callable[[jax.Array], tuple[Any, Loss]]


def begin_with(
    transformation: optax.GradientTransformation, state: Any
) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation with ``state`` as its initial state.

    Args:
        transformation: an optax transformation.
        state: a state of it, for instance a learned or a loaded one.

    Raises:
        ValueError: at ``init`` if the state does not fit the parameters; the
            message names the leaf.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> tx, w = optax.trace(0.5), jnp.zeros(2)
        >>> _, state = tx.update(jnp.ones(2), tx.init(w))
        >>> warm = begin_with(tx, state)
        >>> warm.update(jnp.ones(2), warm.init(w))[0].tolist()
        [1.5, 1.5]
    """
    transformation = optax.with_extra_args_support(transformation)

    def init(params):
        if not jax.tree.leaves(params):
            return transformation.init(params)  # optax passes placeholders.
        wanted = jax.eval_shape(transformation.init, params)
        if jax.tree.structure(wanted) != jax.tree.structure(state):
            raise ValueError(
                "the state is of other parameters or of another "
                f"transformation: it has {jax.tree.structure(state)}, these "
                f"parameters need {jax.tree.structure(wanted)}"
            )
        pairs = zip(
            jax.tree_util.tree_leaves_with_path(wanted),
            jax.tree.leaves(state),
            strict=True,
        )
        for (path, need), have in pairs:
            if (need.shape, need.dtype) != (have.shape, have.dtype):
                raise ValueError(
                    f"{leaf_name(path)} of the state is {have.dtype}"
                    f"{list(have.shape)}; these parameters need {need.dtype}"
                    f"{list(need.shape)}"
                )
        # A new copy each time, which the caller may donate.
        return jax.tree.map(jnp.array, state)

    return optax.GradientTransformationExtraArgs(init, transformation.update)


def meta_learn(
    transformation: optax.GradientTransformation,
    task_distribution: TaskDistribution,
    outer_optimizer: optax.GradientTransformation,
    *,
    meta_steps: int = 100,
    tasks: int = 8,
    steps: int = 32,
    truncation: int | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    learn: Callable[[str], bool] | None = None,
    seed: int = 0,
    callback: Callable[[int, float], None] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Learns the initial state of a transformation on a distribution of tasks.

    Args:
        transformation: the transformation whose initial state is learned,
            with its learning and decay rates if it is wrapped in
            ``optax.inject_hyperparams``.
        task_distribution: traceable function ``rng -> (params, loss)``, where
            ``loss`` is ``(params, rng) -> scalar`` with a new ``rng`` at every
            step. Parameters have the same shapes in all tasks.
        outer_optimizer: optimizer of the initial state.
        meta_steps: number of steps of ``outer_optimizer``.
        tasks: number of tasks per meta step.
        steps: number of inner steps per task.
        truncation: number of steps that gradients flow through, a divisor of
            ``steps``; ``None`` is all of them.
        bounds: smallest and largest value of leaves by name, the last key of
            a leaf's path: ``{"retention": (0.0, 1.0)}``.
        learn: predicate on a leaf's path that selects the leaves to learn;
            ``None`` selects all floating-point leaves.
        seed: seed of the tasks.
        callback: called with the number of each meta step, from 1, and its
            mean loss.

    Returns:
        The transformation with the learned state returned by ``init``, for
        parameters of the tasks' shapes. That state is a tree of arrays like
        any other; a saved copy is used through :func:`begin_with`.

    Raises:
        ValueError: for a count below 1, a ``truncation`` that does not divide
            ``steps``, a bound for a leaf that is not learned, or if there is
            nothing to learn.
        FloatingPointError: if the loss or its gradient was not finite ten
            times in a row; a single such meta step is skipped.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> def task(rng):  # Go from a random point to zero.
        ...     w = jax.random.normal(rng, (3,))
        ...     return w, lambda w, rng: 0.5 * jnp.sum(w**2)
        >>> sgd = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
        >>> learned = meta_learn(sgd, task, optax.adam(0.05), steps=4)
        >>> rate = learned.init(jnp.zeros(3)).hyperparams["learning_rate"]
        >>> bool(abs(rate - 1) < 0.05)  # A rate of 1 takes one step.
        True
    """
    for name, value in (
        ("meta_steps", meta_steps),
        ("tasks", tasks),
        ("steps", steps),
    ):
        check_count(name, value)
    truncation = steps if truncation is None else truncation
    check_count("truncation", truncation)
    if steps % truncation:
        raise ValueError(f"truncation={truncation} must divide steps={steps}")
    inner = optax.with_extra_args_support(transformation)
    rng = jax.random.key(seed)
    params, _ = task_distribution(rng)
    theta = _Learned(inner.init(params), learn, bounds or {})

    def task_loss(values, rng):
        draw, noise = jax.random.split(rng)
        params, loss = task_distribution(draw)

        def step(carry, rng):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, rng)
            updates, state = inner.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        def window(carry, xs):
            first, rngs = xs
            params, state = jax.lax.stop_gradient(carry)
            state = theta.attach(state, values, first)
            return jax.lax.scan(jax.checkpoint(step), (params, state), rngs)

        count = steps // truncation
        rngs = jax.random.split(noise, (count, truncation))
        _, losses = jax.lax.scan(
            jax.checkpoint(window),
            (params, theta.state_of(values)),
            (jnp.arange(count) == 0, rngs),
        )
        return losses.mean()

    @jax.jit
    def meta_step(values, outer_state, rng):
        def mean_loss(values):
            rngs = jax.random.split(rng, tasks)
            return jax.vmap(task_loss, (None, 0))(values, rngs).mean()

        loss, grads = jax.value_and_grad(mean_loss)(values)
        finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
        updates, moved = outer_optimizer.update(grads, outer_state, values)
        after = theta.clip(optax.apply_updates(values, updates)), moved
        values, outer_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            after,
            (values, outer_state),
        )
        return values, outer_state, loss, finite

    values, outer_state = theta.values, outer_optimizer.init(theta.values)
    bad = 0
    for number in range(1, meta_steps + 1):
        values, outer_state, loss, finite = meta_step(
            values, outer_state, jax.random.fold_in(rng, number)
        )
        bad = 0 if finite else bad + 1
        if bad == _PATIENCE:
            raise FloatingPointError(
                f"meta step {number}: loss {float(loss)}, and it or its "
                f"gradient was not finite {bad} times in a row; clip or slow "
                "outer_optimizer, give bounds, or a smaller truncation"
            )
        if callback is not None:
            callback(number, float(loss))
    return begin_with(transformation, theta.state_of(values))


class _Learned:
    """The learned leaves of a state, and their bounds."""

    def __init__(self, state, learn, bounds):
        found, self.treedef = jax.tree_util.tree_flatten_with_path(state)
        self.leaves = [leaf for _, leaf in found]
        names = [jax.tree_util.keystr(path) for path, _ in found]
        self.at = [
            i
            for i, leaf in enumerate(self.leaves)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            and (learn is None or learn(names[i]))
        ]
        if not self.at:
            raise ValueError(
                "the transformation has no state to learn; "
                "optax.inject_hyperparams makes rates part of it. Its leaves: "
                f"{', '.join(names) or 'none'}"
            )
        # Hyperparameters of inject_hyperparams, which no step changes.
        self.constant = [".hyperparams[" in names[i] for i in self.at]
        last = [
            jax.tree_util.keystr(found[i][0][-1:], simple=True) for i in self.at
        ]
        unknown = sorted(set(bounds) - set(last))
        if unknown:
            raise ValueError(
                f"bounds={unknown[0]!r} is no leaf that is learned; those are "
                f"{', '.join(dict.fromkeys(last))}"
            )
        self.bounds = [bounds.get(name) for name in last]
        self.values = self.clip([jnp.asarray(self.leaves[i]) for i in self.at])

    def state_of(self, values):
        leaves = list(self.leaves)
        for i, value in zip(self.at, values, strict=True):
            leaves[i] = value
        return self.treedef.unflatten(leaves)

    def attach(self, state, values, first):
        """Adds to a constant ``state`` a gradient with respect to ``values``.

        Only hyperparameters have one after the ``first`` window.
        """
        leaves = jax.tree.leaves(state)
        for i, value, constant in zip(
            self.at, values, self.constant, strict=True
        ):
            zero = value - jax.lax.stop_gradient(value)  # Its derivative is 1.
            acts = 1 if constant else first.astype(value.dtype)
            leaves[i] = leaves[i] + acts * zero
        return self.treedef.unflatten(leaves)

    def clip(self, values):
        return [
            value if limits is None else jnp.clip(value, *limits)
            for value, limits in zip(values, self.bounds, strict=True)
        ]
