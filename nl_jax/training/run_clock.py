"""Where the time of a run goes, and how near its devices are to their peak."""

import collections
import contextlib
import json
import time
from collections.abc import Iterator
from typing import Literal

from etils import epath

from nl_jax.errors import InputError
from nl_jax.training.process import write_json


class RunClock:
    """Measures steps, waits for input, MFU and goodput.

    Goodput is the time in steps over all time since the run was first started:
    waits for input, evaluation, saving, compilation, pauses between restarts
    and steps that were lost and done again make it smaller.

    Args:
        started: Unix time of the first start.
        step: step that the run goes on from.
        in_steps: seconds that went into the steps up to there.
        ideal_seconds: those of a step at the devices' peak rate, if known.
    """

    def __init__(
        self,
        started: float,
        step: int = 0,
        in_steps: float = 0.0,
        ideal_seconds: float | None = None,
    ):
        self._ideal_seconds = ideal_seconds
        self._started, self._before = started, in_steps
        self._began = time.monotonic()
        self._spent: dict[str, float] = collections.defaultdict(float)
        self._measured = (step, 0.0, 0.0)

    @property
    def seconds(self) -> float:
        """Seconds since this object was made."""
        return time.monotonic() - self._began

    @property
    def in_steps(self) -> float:
        """Seconds that went into steps, those before restarts included."""
        return self._before + self.seconds - sum(self._spent.values())

    @contextlib.contextmanager
    def outside(self, what: Literal["input", "other"]) -> Iterator[None]:
        """Context whose time is not spent in steps."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._spent[what] += time.monotonic() - began

    def measure(self, step: int) -> dict[str, float]:
        """Returns the means per step since the last call, and the goodput.

        Args:
            step: the last step that is complete.

        Returns:
            ``step_seconds``, of which ``input_wait_seconds`` pass before there
            is a batch, ``goodput`` and, where the peak is known, ``mfu``: model
            FLOPs utilisation, of the whole step with its wait for input.
        """
        before, old_total, old_input = self._measured
        total, waited = (
            self.seconds - self._spent["other"],
            self._spent["input"],
        )
        self._measured = (step, total, waited)
        steps = max(step - before, 1)
        seconds = (total - old_total) / steps
        since_start = max(time.time() - self._started, 1e-9)
        found = {
            "step_seconds": round(seconds, 6),
            "input_wait_seconds": round((waited - old_input) / steps, 6),
            "goodput": round(self.in_steps / since_start, 4),
        }
        if self._ideal_seconds is not None:
            found["mfu"] = round(self._ideal_seconds / max(seconds, 1e-9), 4)
        return found


def first_start(file: epath.Path) -> float:
    """Returns when a run was first started, which it notes in a file.

    Raises:
        InputError: if the file holds something else.
    """
    try:
        if not file.exists():
            write_json(file, {"time": time.time()})
        return float(json.loads(file.read_text())["time"])
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{file} does not hold the time of a run's start; remove it"
        ) from error
