"""The objectives of a continuum memory by name."""

from nl_jax.layers.continuum.cms_objective import CMSObjective
from nl_jax.layers.continuum.local import LOCAL
from nl_jax.layers.continuum.next_token import NEXT_TOKEN
from nl_jax.layers.continuum.outer import OUTER

CMS_OBJECTIVES: dict[str, CMSObjective] = {
    objective.name: objective for objective in (OUTER, NEXT_TOKEN, LOCAL)
}
"""Values of ``cms.objective``."""
