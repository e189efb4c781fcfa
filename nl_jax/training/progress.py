"""How far a run is: a bar on a terminal, plain lines anywhere else."""

import logging
import sys
import time
from types import TracebackType

import jax
import tqdm

_LOG = logging.getLogger(__name__)


class Progress:
    """Shows steps, values, speed and the time left; a context manager.

    Args:
        total: steps of the run.
        start: steps that are done already.
        unit_size: tokens in a step, for the speed.
        seconds: between plain lines.
    """

    def __init__(
        self, total: int, start: int, unit_size: int, seconds: float = 10.0
    ):
        self._total, self._start, self._unit = total, start, unit_size
        self._seconds = seconds
        self._began = self._shown = time.monotonic()
        self._bar = None
        if jax.process_index() == 0 and sys.stderr.isatty():
            self._bar = tqdm.tqdm(
                total=total, initial=start, unit="step", dynamic_ncols=True
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, step: int, loss: float, bits: float) -> float:
        """Shows a step's numbers; returns tokens per second so far."""
        now = time.monotonic()
        done = max(step - self._start, 1)
        speed = done * self._unit / max(now - self._began, 1e-9)
        left = (self._total - step) * (now - self._began) / done
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"loss {loss:.3f}, {bits:.3f} bits/byte, {speed:,.0f} tok/s"
            )
            self._bar.update(step - self._bar.n)
        elif (
            now - self._shown >= self._seconds or step in (1, self._total)
        ) and jax.process_index() == 0:
            self._shown = now
            _LOG.info(
                "step %d/%d  loss %.3f  %.3f bits/byte  %s tokens/s  %s left",
                step,
                self._total,
                loss,
                bits,
                f"{speed:,.0f}",
                f"{int(left) // 60}:{int(left) % 60:02d}",
            )
        return speed
