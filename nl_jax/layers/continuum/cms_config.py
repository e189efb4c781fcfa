"""Choices of a continuum memory: its levels and how they learn."""

import dataclasses
import itertools
from typing import Any, Literal, TypeAlias

import optax

from nl_jax.checks import (
    check_choice,
    check_fields,
    choose,
    is_integer,
    require,
)
from nl_jax.errors import InputError
from nl_jax.layers.continuum.adaptation import check_adaptive
from nl_jax.layers.continuum.cms_objective import CMSObjective
from nl_jax.layers.continuum.cms_objectives import CMS_OBJECTIVES
from nl_jax.layers.continuum.cms_table import cms_level_rows
from nl_jax.nested import LevelRow
from nl_jax.optimizers import NAMED

Inner: TypeAlias = str | optax.GradientTransformation
"""``"dgd"``, a name in ``NAMED``, or any transformation of optax."""


@dataclasses.dataclass(frozen=True)
class CMSConfig:
    """Levels of a continuum memory and how they learn.

    Raises:
        ValueError: at construction, naming the field, its value and what is
            allowed.
    """

    step_periods: tuple[int, ...] = (1,)
    """Optimizer steps between updates of each level, fastest first, each
    dividing the next: the periods with ``objective="outer"``."""
    token_periods: tuple[int, ...] = ()
    """Tokens between updates of each level, likewise: the periods with all
    other objectives. Empty for 16, 64, 256 and so on, as many as there are
    ``step_periods``, or in a model multiples of its mixer's chunks."""
    form: Literal["sequential", "independent", "nested"] = "sequential"
    """Levels in a chain; side by side, with learned weights; or a chain whose
    slower levels learn the start of the next faster one (in context)."""
    hidden: float = 2.0
    """Hidden width of each level's MLP, in units of ``d_model``."""
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    """Each level's MLP: SwiGLU, or GPT-2's, two matrices with biases, which
    stay slow, and GELU in its tanh form."""
    objective: str | CMSObjective = "outer"
    """Where a level's gradient comes from: the training loss through the
    optimizer (``"outer"``); or in context, while the model reads, from its own
    loss (``"next_token"``), or from each level's own keys and values
    (``"local"``); or an objective of yours."""
    rate: float = 0.01
    """Initial inner learning rate of each level (in context); each is learned
    as a factor of this one, so 0 is the static network, exactly."""
    inner: Inner | tuple[Inner, ...] = "sgd"
    """How levels step (in context): names in ``nl_jax.optimizers.NAMED``
    (``"adamw"`` is Adam there), ``"dgd"`` for delta gradient descent, or
    transformations of optax that give directions of ascent, before the rate:
    ``optax.scale_by_adam()``, not ``optax.adam(1.0)``. One for all or one for
    each. Only names can be saved with a model."""
    first_order: bool = False
    """Whether the training gradient ignores how the inner gradients depend
    on the weights (in context)."""
    layers: int = 0
    """How many of the last blocks learn in context; 0 for all."""
    placement: Literal["block", "depth"] = "block"
    """Where the levels are: all of them in every block, or one MLP per block,
    the blocks that learn in context being shared out among the levels in the
    order of depth, evenly, the fastest first (in context)."""
    adaptive: Literal["none", "coherence", "surprise"] = "none"
    """When all levels but the fastest step (``next_token``), each row by
    itself: at the end of their periods; or, after ``least`` chunks and at the
    latest after their periods, once the norm of the gathered gradient is
    ``threshold`` times the sum of its chunks' norms; or once the loss of a
    chunk is above ``threshold`` times its running mean."""
    least: int = 1
    """Chunks of the fastest level between such steps, at least."""
    threshold: float = 1.0
    """Of that signal; for coherence at most 1."""
    cycle: int = dataclasses.field(default=1, init=False, repr=False)
    """Tokens of which default ``token_periods`` are multiples: :meth:`on_grid`.
    Set by models; no choice."""

    def __post_init__(self):
        check_fields(self, "cms.", layers=0)
        for name in ("step_periods", "token_periods"):
            given = getattr(self, name)
            _check_periods(f"cms.{name}", given)
            object.__setattr__(self, name, tuple(map(int, given)))
        if isinstance(self.inner, list):
            object.__setattr__(self, "inner", tuple(self.inner))
        for inner in self.inners:
            if not isinstance(inner, optax.GradientTransformation):
                check_choice("cms.inner", inner, (*NAMED, "dgd"))
        require(
            bool(self.step_periods),
            "cms.step_periods=() must hold a period for each level",
        )
        require(
            len(self.inners) == len(self.periods),
            f"cms.inner={self.inner} must be one optimizer or one for each of "
            f"the {len(self.periods)} levels",
        )
        require(
            self.form != "nested" or not any(self.deltas),
            f"cms.inner={self.inner!r}: 'dgd' goes with form='sequential' or "
            "'independent'; the starts of nested levels learn from sums of "
            "gradients, which it does not gather",
        )
        require(
            self.placement == "block" or self.form == "sequential",
            "cms.placement='depth' goes with form='sequential': its levels "
            f"are a chain of blocks, not {self.form!r}",
        )
        self.goal.check(self)
        if self.adaptive != "none":
            check_adaptive(self)
        require(self.hidden > 0, f"cms.hidden={self.hidden} must be positive")
        require(self.rate >= 0, f"cms.rate={self.rate} must not be negative")

    @property
    def periods(self) -> tuple[int, ...]:
        """Distances between updates of each level, in the objective's unit."""
        if self.goal.unit == "steps":
            return self.step_periods
        first = -(-16 // self.cycle) * self.cycle
        count = range(len(self.step_periods))
        return self.token_periods or tuple(first * 4**level for level in count)

    @property
    def shown_periods(self) -> str:
        """The field of ``periods`` and its value, for messages."""
        unit = self.goal.unit.removesuffix("s")
        return f"cms.{unit}_periods={self.periods}"

    def on_grid(self, cycle: int) -> "CMSConfig":
        """Makes default ``token_periods`` multiples of ``cycle`` tokens.

        Example:
            >>> CMSConfig((1, 4), objective="local").on_grid(24).periods
            (24, 96)
        """
        config = dataclasses.replace(self)
        object.__setattr__(config, "cycle", cycle)
        return config

    def check_units(self, given: Any, before: "CMSConfig") -> None:
        """Checks that periods are in the unit of the objective.

        Args:
            given: fields that are chosen, or a whole configuration.
            before: configuration that they change.

        Raises:
            InputError: if only periods in the other unit are chosen, to no
                effect.
        """
        if isinstance(given, CMSConfig):
            before = CMSConfig()
            given = {
                name
                for name in ("step_periods", "token_periods")
                if getattr(given, name) != getattr(before, name)
            }
        chosen = {"step_periods", "token_periods"} & {*given}
        steps, old = self.step_periods, before.step_periods
        if self.goal.unit == "steps":
            idle = chosen == {"token_periods"} and self.token_periods != ()
        else:
            # Without periods in tokens, their number is that of the levels.
            number = steps[0] == 1 and (steps == old or len(steps) != len(old))
            idle = chosen == {"step_periods"} and not (
                self.token_periods or number
            )
        if idle:
            (name,) = chosen
            raise InputError(
                f"cms.{name}={getattr(self, name)} has no effect: with "
                f"cms.objective={self.objective!r} periods are in "
                f"{self.goal.unit}, {self.shown_periods}"
            )

    @property
    def goal(self) -> CMSObjective:
        """The objective itself."""
        return choose(
            "cms.objective", self.objective, CMS_OBJECTIVES, CMSObjective
        )

    def levels(
        self, params: Any, state: Any, n_layers: int = 1
    ) -> list[LevelRow]:
        """Returns the rows of the level table; see ``cms_level_rows``."""
        return cms_level_rows(self, params, state, n_layers)

    @property
    def learns(self) -> bool:
        """Whether levels move while the model reads."""
        # At rate 0 the static network is exact, and free.
        return self.goal.unit == "tokens" and self.rate > 0

    @property
    def inners(self) -> tuple[Inner, ...]:
        """How each level steps, as it was given."""
        # optax's own type is a tuple too.
        if type(self.inner) is tuple:
            return self.inner
        return (self.inner,) * len(self.periods)

    @property
    def optimizers(self) -> tuple[optax.GradientTransformation, ...]:
        """The same as transformations of optax."""
        # What "dgd" gathers is its step: nl_jax.layers.continuum.probes.
        table = {name: row.build for name, row in NAMED.items()}
        table["dgd"] = optax.identity
        return tuple(
            table[inner]() if isinstance(inner, str) else inner
            for inner in self.inners
        )

    @property
    def deltas(self) -> tuple[bool, ...]:
        """Which levels take delta gradient descent."""
        return tuple(inner == "dgd" for inner in self.inners)

    def only(self, level: int) -> "CMSConfig":
        """Returns the levels of a block that has one of them, across depth."""
        return dataclasses.replace(
            self,
            token_periods=self.periods[level : level + 1],
            inner=self.inners[level],
            adaptive="none",
            placement="block",
        )

    @property
    def prefixes(self) -> tuple[str, ...]:
        """How the names of each level's parameters begin in its blocks."""
        numbers = range(1, len(self.periods) + 1)
        if self.placement == "depth":
            return tuple("level_1_" for _ in numbers)
        return tuple(f"level_{number}_" for number in numbers)

    def blocks(self, n_layers: int) -> tuple[slice, ...]:
        """Returns in which of ``n_layers`` blocks each level learns in context.

        Example:
            >>> CMSConfig(step_periods=(1, 4), layers=2).blocks(3)
            (slice(1, 3, None), slice(1, 3, None))
            >>> CMSConfig(
            ...     token_periods=(4, 8), objective="local", placement="depth"
            ... ).blocks(5)
            (slice(0, 3, None), slice(3, 5, None))
        """
        count = self.layers or n_layers
        first = n_layers - count
        levels = len(self.periods)
        if self.placement == "block":
            return (slice(first, n_layers),) * levels
        each, more = divmod(count, levels)
        ends = [first]
        for index in range(levels):
            ends.append(ends[-1] + each + (index < more))
        return tuple(map(slice, ends[:-1], ends[1:]))


def _check_periods(name, periods):
    require(
        isinstance(periods, (tuple, list)),
        f"{name}={periods!r} must be a tuple of integers",
    )
    for period in periods:
        require(
            is_integer(period) and 1 <= period < 2**31,
            f"{name}={periods} must hold integers >= 1 and < 2**31",
        )
    for fast, slow in itertools.pairwise(periods):
        require(
            slow % fast == 0,
            f"{name}={periods}: each must divide the next, but {fast} does "
            f"not divide {slow}",
        )
