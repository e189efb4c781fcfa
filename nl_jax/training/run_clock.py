"""Where the time of a run goes, and how near its devices are to their peak."""

import collections
import contextlib
import json
import logging
import time
from collections.abc import Iterator
from typing import Literal

from etils import epath

from nl_jax.checks import is_number
from nl_jax.training.process import write_json

_LOG = logging.getLogger(__name__)


class RunClock:
    """Measures steps, waits for input, MFU and goodput.

    Goodput is the time in steps over all time since the run was first started:
    waits for input, evaluation, saving, compilation, pauses between restarts
    and steps that were lost and done again make it smaller.

    Args:
        started: Unix time of the first start, if known.
        step: step that the run goes on from.
        in_steps: seconds that went into the steps up to there.
        ideal_seconds: those of a step at the devices' peak rate, if known.
    """

    def __init__(
        self,
        started: float | None,
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
            is a batch, and, where start and peak are known, ``goodput`` and
            ``mfu``: model FLOPs utilisation, of the whole step with its wait
            for input.
        """
        before, old_total, old_input = self._measured
        total, waited = (
            self.seconds - self._spent["other"],
            self._spent["input"],
        )
        self._measured = (step, total, waited)
        steps = max(step - before, 1)
        seconds = (total - old_total) / steps
        found = {
            "step_seconds": round(seconds, 6),
            "input_wait_seconds": round((waited - old_input) / steps, 6),
        }
        if self._started is not None:
            since_start = max(time.time() - self._started, 1e-9)
            found["goodput"] = round(self.in_steps / since_start, 4)
        if self._ideal_seconds is not None:
            found["mfu"] = round(self._ideal_seconds / max(seconds, 1e-9), 4)
        return found


def first_start(file: epath.Path, saved: dict | None = None) -> float | None:
    """Returns when a run was first started, which it notes in a file.

    If the file is missing or damaged, what the checkpoint says is noted again.

    Args:
        file: ``started.json`` of the run.
        saved: metadata of the checkpoint that the run goes on from, if any.

    Returns:
        Unix time, or ``None`` if it is known no more: then there is no goodput.
    """
    if file.exists():
        try:
            noted = _past(json.loads(file.read_text())["time"])
        except (ValueError, TypeError, KeyError):
            noted = None
        if noted is not None:
            return noted
    elif saved is None:
        saved = {"started": time.time()}
    started = _past((saved or {}).get("started"))
    if started is None:
        _LOG.warning(
            "%s does not say when the run was first started: no goodput", file
        )
    else:
        write_json(file, {"time": started})
    return started


def _past(value) -> float | None:
    """Returns a Unix time, unless it is none or has not come yet."""
    return (
        float(value) if is_number(value) and 0 < value <= time.time() else None
    )
