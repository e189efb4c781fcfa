"""What a run carries from step to step."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from nl_jax.models import LanguageModel
from nl_jax.models.model_state import ModelState


class TrainState(NamedTuple):
    """What each training step updates."""

    variables: Any
    """Parameters of the model, ``{"params": ...}``."""
    optimizer: Any
    """State of the optimizer."""
    memory: Any = None
    """The model's state after each row of the batch, from which the row's next
    window goes on; ``None`` if all windows start from nothing."""

    def parts(self) -> dict[str, Any]:
        """Returns what there is, by name, as a checkpoint holds it."""
        return {k: v for k, v in self._asdict().items() if v is not None}

    def forget(self) -> "TrainState":
        """Returns the state from which no row's document goes on."""
        if self.memory is None:
            return self
        none = self.memory.segment * 0
        return self._replace(memory=self.memory._replace(segment=none))


def begin_memory(
    model: LanguageModel, variables: Any, reading: str, rows: int
) -> ModelState | None:
    """Returns the memory of rows before a run; ``None`` if none ever goes on.

    Args:
        model: the model.
        variables: its parameters.
        reading: how batches are read, ``data.reading``.
        rows: number of rows of the batch.
    """
    if reading != "contiguous":
        return None
    memory = model.init_state(variables, rows)
    return memory._replace(segment=jnp.zeros((rows,), jnp.int32))
