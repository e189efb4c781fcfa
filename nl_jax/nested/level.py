r"""Levels: optimisation problems that are solved one inside the other.

Def. 2-3 of arXiv 2512.24695: each problem has an objective, a context and
parameters, and takes the linearised proximal step
:math:`\theta^+ = \arg\min_\Phi \langle\nabla L(\theta), \Phi\rangle +
\|\Phi-\theta\|^2/(2\eta)`, which is gradient descent; any optax transformation
may take its place. Levels are ordered by their update frequency.

Every level gathers something at each tick and, once per period, steps on the
sum and starts to gather again. :class:`Level` is this pattern. ``every``, the
slow momentum of ``M3`` and memories of gradients tick once per optimizer step,
the levels of a continuum memory once per token or chunk with a period for each
row, and ``gradient_level`` in any loop.

Limit of the idea: a memory that reads a whole sequence (``Memory.scan``, the
sequence mixers) is a level mathematically, and a test ticks one token by token
to the same numbers, but it does not run on this class. Ticks are sequential; a
scan is parallel within a chunk and never computes the weights between ticks.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from nl_jax.checks import check_count
from nl_jax.errors import InputError

LevelObjective = Callable[[Any, Mapping[str, Any], Any], jax.Array]
Tree = TypeVar("Tree")


class LevelState(NamedTuple):
    """What a level holds between two ticks."""

    params: Any
    """Parameters that its steps change."""
    gathered: Any
    """Sum of what came since its last step; zero after each step."""
    inner: Any
    """State of its rule, which changes only at a step."""
    since: Any
    """Ticks since its last step, an int32 scalar or ``[B]``, one per row."""


def state_zeros(tree: Tree, dtype: Any = None) -> Tree:
    """Returns zeros for a state that is like ``tree``.

    Args:
        tree: arrays, or their shapes and dtypes.
        dtype: dtype of the zeros. ``None`` is that of each leaf, but at least
            float32: a sum in bfloat16 stops growing at 256 times its terms.

    Raises:
        InputError: if ``dtype`` is no dtype of real numbers.

    Example:
        >>> state_zeros(jnp.ones(1, jnp.bfloat16)).dtype
        dtype('float32')
    """
    try:
        real = dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        real = False
    if not real:
        raise InputError(
            f"state_dtype={dtype!r} must be a dtype of real numbers, such as "
            "'float32' or 'bfloat16'"
        )

    def zeros(leaf):
        own = leaf.dtype
        if dtype is not None:
            own = jnp.dtype(dtype)
        elif jnp.issubdtype(own, jnp.floating):
            own = jnp.promote_types(own, jnp.float32)
        return jnp.zeros_like(leaf, own)

    return jax.tree.map(zeros, tree)


def keep_dtypes(new: Tree, old: Any) -> Tree:
    """Returns ``new`` with the dtypes of ``old``, a state before it."""
    return jax.tree.map(
        lambda a, b: a if a.dtype == b.dtype else a.astype(b.dtype), new, old
    )


def fresh_level(
    params: Any, inner: Any = (), *, state_dtype: Any = None
) -> LevelState:
    """Returns the state of a level before its first tick.

    Args:
        params: its parameters.
        inner: state of its rule.
        state_dtype: dtype of what it gathers, see :func:`state_zeros`.
    """
    zeros = state_zeros(params, state_dtype)
    return LevelState(params, zeros, inner, jnp.zeros((), jnp.int32))


def add_up(state: LevelState, new: Any, *seen: Any) -> Any:
    """Returns what a level has gathered plus ``new``; ``seen`` is not used."""
    del seen
    # Updates of another dtype must not change the dtype of the state.
    return jax.tree.map(
        lambda a, n: a + jnp.asarray(n, a.dtype), state.gathered, new
    )


class Level(NamedTuple):
    """One optimisation problem as pure functions.

    The arguments ``*seen`` of ``gather`` and ``step`` are the inputs of one
    tick: the updates of an optimizer, the gradient of a token, or, in a
    :class:`NestedSystem`, the parameters of the other levels and the context.

    Example:
        >>> level = Level(
        ...     fresh_level,
        ...     lambda state, new: (state.params + state.gathered, ()),
        ...     period=2,
        ... )
        >>> state = level.init(jnp.array(10.0))
        >>> for new in (1.0, 2.0, 4.0):
        ...     state = level.update(state, new)
        ...     print(state.params, state.gathered, state.since)
        10.0 1.0 1
        13.0 0.0 0
        13.0 4.0 1
    """

    init: Callable[[Any], LevelState]
    """``params -> state``."""
    step: Callable[..., tuple[Any, Any]]
    """``(state, *seen) -> (params, inner)``, using ``state.gathered``."""
    period: int
    """Ticks between two steps; 0 for a level that never learns."""
    gather: Callable[..., Any] = add_up
    """``(state, *seen) -> gathered`` after this tick; by default the sum."""
    rule: str = "own rule"
    """Name of the update rule in the level table."""

    @property
    def frequency(self) -> float:
        """Steps per tick (Def. 2)."""
        return 1 / self.period if self.period else 0.0

    def update(
        self, state: LevelState, *seen: Any, due: Any = None, count: Any = 1
    ) -> LevelState:
        """Advances the level by one tick: gathers, and steps when it is due.

        Args:
            state: before the tick.
            *seen: inputs of the tick.
            due: whether the level steps now, a boolean scalar, traced or not,
                or ``[B]``, one per row of a batch-first state. By default true
                once ``period`` ticks have passed.
            count: number of ticks to count, an integer or ``[B]``.

        Returns:
            The state after the tick. The step does not run unless some row is
            due; rows that are not due keep their parameters and sums.
        """
        if not self.period:
            return state
        if due is None:
            always = self.period == 1 and isinstance(count, int)
            due = always or state.since + count >= self.period
        state = state._replace(
            gathered=self.gather(state, *seen), since=state.since + count
        )

        def act(state):
            before = state
            if jnp.ndim(due):
                # No gradient flows back through the step of a row that is not
                # due: of a sum of 0, that of Adam's root is infinite.
                fixed = jax.lax.stop_gradient(state)
                state = select_rows(due, state, fixed)
            params, inner = self.step(state, *seen)
            none = jax.tree.map(jnp.zeros_like, (state.gathered, state.since))
            after = LevelState(params, none[0], inner, none[1])
            return select_rows(due, after, before) if jnp.ndim(due) else after

        if isinstance(due, bool):
            return act(state) if due else state
        return jax.lax.cond(jnp.any(due), act, lambda state: state, state)


def select_rows(due: Any, new: Tree, old: Tree) -> Tree:
    """Rows of ``new`` where ``due``, else of ``old``.

    ``due`` is a mask of the first axes, usually ``[B]``.
    """

    def pick(a, b):
        rest = max(jnp.ndim(a), jnp.ndim(b)) - due.ndim
        return jnp.where(due.reshape(*due.shape, *(1,) * rest), a, b)

    return jax.tree.map(pick, new, old)


def gradient_level(
    objective: LevelObjective,
    optimizer: optax.GradientTransformation,
    period: int = 1,
) -> Level:
    """Builds a level that follows the gradient of its objective.

    Args:
        objective: ``(params, others, context) -> loss``; ``others`` maps the
            names of the system's other levels to their parameters, through
            which no gradient flows.
        optimizer: any optax transformation.
        period: ticks over which gradients are summed before the optimizer
            runs; 0 freezes the level.

    Raises:
        ValueError: if ``period`` is negative.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> level = gradient_level(
        ...     lambda w, others, x: 0.5 * (w - x) ** 2, optax.sgd(1.0)
        ... )
        >>> state = level.init(jnp.array(0.0))
        >>> float(level.update(state, {}, jnp.array(3.0)).params)
        3.0
    """
    period = check_count("period", period, least=0)

    def init(params):
        return fresh_level(params, optimizer.init(params) if period else ())

    def gather(state, others, context):
        others = jax.lax.stop_gradient(others)
        return add_up(state, jax.grad(objective)(state.params, others, context))

    def step(state, others, context):
        del others, context
        gathered = optax.tree.cast_like(state.gathered, state.params)
        updates, inner = optimizer.update(gathered, state.inner, state.params)
        return optax.apply_updates(state.params, updates), inner

    return Level(init, step, period, gather, "optax, on the gradient")


class NestedSystem:
    """Named levels, ordered by frequency, that advance tick by tick.

    ``A`` comes before ``B`` when it is updated more often; among levels of
    equal frequency the order given says which needs the other's state
    (Def. 2), and a level that comes later sees the earlier one's new state.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> pull = lambda w, others, x: 0.5 * jnp.sum((w - x) ** 2)
        >>> system = NestedSystem(
        ...     {
        ...         "slow": gradient_level(pull, optax.sgd(0.1), 4),
        ...         "fast": gradient_level(pull, optax.sgd(0.5), 1),
        ...     }
        ... )
        >>> system.order
        ('fast', 'slow')
        >>> states = system.init({"slow": jnp.zeros(()), "fast": jnp.zeros(())})
        >>> states = system.update(states, 4.0)
        >>> float(states["fast"].params), float(states["slow"].params)
        (2.0, 0.0)
    """

    def __init__(self, members: Mapping[str, Level]):
        if not members:
            raise ValueError("levels is empty; a system has at least one")
        self.members = dict(members)
        self.order = tuple(
            sorted(members, key=lambda name: -members[name].frequency)
        )

    def init(self, params: Mapping[str, Any]) -> dict[str, LevelState]:
        """Returns the state of every level for its parameters."""
        self._check("params", params)
        return {n: self.members[n].init(params[n]) for n in self.order}

    def update(
        self, states: Mapping[str, LevelState], context: Any
    ) -> dict[str, LevelState]:
        """Advances every level by one tick on the same context."""
        self._check("states", states)
        states = dict(states)
        for name in self.order:
            others = {n: s.params for n, s in states.items() if n != name}
            states[name] = self.members[name].update(
                states[name], others, context
            )
        return states

    def _check(self, what: str, given: Iterable[str]):
        if set(given) != set(self.members):
            raise ValueError(
                f"{what} has levels {sorted(given)}; the system has "
                f"{sorted(self.members)}"
            )
