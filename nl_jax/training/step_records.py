"""The metrics of a run's steps, which the host fetches some at a time."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax

from nl_jax.errors import DivergedError
from nl_jax.training.losses import bits_per_byte
from nl_jax.training.metric_writers import MetricsWriter
from nl_jax.training.reporting import Progress
from nl_jax.training.run_clock import RunClock
from nl_jax.training.train_config import TrainConfig


class StepRecords:
    """Fetches the metrics of steps, checks all and writes some.

    The metrics of all steps since the last record are fetched together, once
    the step after them has been started: the device never waits for the host.

    Args:
        config: configuration of the run.
        schedule: learning rate of each step, from 0.
        writers: where records go.
        records: those of earlier steps.
        tokens: targets that counted in earlier steps.
        clock: times the steps.
        progress: shows them.
        kept: returns what is left of a run that diverges, for the error.
    """

    def __init__(
        self,
        config: TrainConfig,
        schedule: optax.Schedule,
        writers: Sequence[MetricsWriter],
        records: list[dict],
        tokens: int,
        clock: RunClock,
        progress: Progress,
        kept: Callable[[], str],
    ):
        # As one program: it is run at every record.
        self._config, self._schedule = config, jax.jit(schedule)
        self._writers, self.records, self.tokens = writers, records, tokens
        self._clock, self._progress, self._kept = clock, progress, kept
        times = [row["seconds"] for row in records if "seconds" in row]
        self._seconds_before = times[-1] if times else 0.0
        self._pending: list[tuple] = []

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Keeps the metrics of a step that was just started."""
        if self._pending and self._is_written(self._pending[-1][0]):
            self.fetch()
        # Computed before the next step: the host need not wait for that.
        rate = self._schedule(step - 1) if self._is_written(step) else None
        self._pending.append(
            (step, (metrics["sums"], metrics["grad_norm"], rate))
        )

    def fetch(self) -> None:
        """Waits for all steps that were started, and checks them.

        Raises:
            DivergedError: if a loss or a gradient norm is not finite.
        """
        if not self._pending:
            return
        steps, metrics = zip(*self._pending, strict=True)
        self._pending.clear()
        found = jax.device_get(metrics)
        for step, (sums, norm, _) in zip(steps, found, strict=True):
            # Of a batch that is all padding no target counts.
            loss = float(sums.nats) / (float(sums.tokens) or 1.0)
            self.tokens += round(float(sums.tokens))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                reason = (
                    f"stopped at step {step}: loss {loss}, gradient norm "
                    f"{float(norm)}"
                )
                raise DivergedError(
                    f"{reason}; {self._kept()}. Lower "
                    "--config.optimizer.learning_rate or "
                    "--config.optimizer.clip_norm, and begin in another "
                    "--workdir or go on with --config.accept_new_config=True",
                    reason,
                )
        bits = bits_per_byte(sums)
        speed = self._progress.update(step, loss, bits)
        if self._is_written(step):
            seconds = self._seconds_before + self._clock.seconds
            values = {
                "loss": loss,
                "bits_per_byte": bits,
                "grad_norm": float(norm),
                "learning_rate": float(found[-1][2]),
                "tokens": self.tokens,
                "seconds": round(seconds, 3),
                "tokens_per_second": round(speed, 1),
            }
            self.write(step, values | self._clock.measure(step))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes values of a step to all destinations."""
        self.records.append({"step": step, **values})
        for writer in self._writers:
            writer.write(step, values)

    def _is_written(self, step: int) -> bool:
        config = self._config
        return step % config.log_every == 0 or step == config.steps
