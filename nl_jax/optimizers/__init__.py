"""Deep optimizers: optax transformations that are memories.

So far: update frequency.
"""

from nl_jax.nested.frequency import every
from nl_jax.optimizers.continuum import continuum

__all__ = ["continuum", "every"]
