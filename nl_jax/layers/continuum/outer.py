"""Levels that only the optimizer moves, each at its own period of steps."""

from nl_jax.checks import require
from nl_jax.layers.continuum.cms_objective import CMSObjective


class Outer(CMSObjective):
    """The training loss; the optimizer updates each level with ``every``."""

    name = "outer"
    unit = "steps"

    def check(self, config):
        """Raises ``ValueError`` for choices that need learning in context."""
        require(
            config.form != "nested",
            "cms.form='nested' goes with objective='next_token' or 'local': "
            "levels return to their start within a context",
        )
        require(
            config.placement != "depth",
            "cms.placement='depth' goes with form='sequential' and an "
            "objective other than 'outer': its levels are a chain of blocks "
            "that learn in context",
        )


OUTER = Outer()
