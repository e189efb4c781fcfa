"""What a run shows: progress and figures."""

import logging
import sys
import time
from collections.abc import Mapping, Sequence

import jax
import tqdm

_LOG = logging.getLogger(__name__)


class Progress:
    """Context manager that shows progress, loss, speed and remaining time.

    Args:
        total: number of steps of the run.
        start: number of steps already done.
        unit_size: tokens per step.
        seconds: time between lines where the output is not a terminal.
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

    def __exit__(self, *unused) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, step: int, loss: float, bits: float) -> float:
        """Shows the numbers of a step; returns the mean tokens per second."""
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

    def note(self, step: int, text: str) -> None:
        """Shows a line about a step, above the bar if there is one."""
        if jax.process_index() == 0:
            with tqdm.tqdm.external_write_mode():
                _LOG.info("step %d/%d  %s", step, self._total, text)


def plot_losses(
    path, records: Sequence[Mapping], references: Mapping[str, float]
) -> None:
    """Plots bits per byte of training and held-out text against the step.

    Args:
        path: path of the image.
        records: lines of ``metrics.jsonl``.
        references: horizontal lines by label, such as gzip's bits per byte.
    """
    figure, axes = _figure()
    for key, label, marker in (
        ("bits_per_byte", "training batch", ""),
        ("held_out_bits_per_byte", "held out", "o"),
    ):
        points = [(r["step"], r[key]) for r in records if key in r]
        if points:
            axes.plot(*zip(*points, strict=True), marker=marker, label=label)
    for color, (name, value) in enumerate(references.items(), 2):
        axes.axhline(value, color=f"C{color}", linestyle="--", label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("bits per byte")
    axes.legend()
    figure.savefig(path, dpi=120)


def plot_positions(path, rows: Sequence[Mapping]) -> None:
    """Plots bits per byte against the position in a stream.

    Args:
        path: path of the image.
        rows: mappings with ``start``, in bytes, and ``bits_per_byte``.
    """
    figure, axes = _figure()
    axes.step(
        [max(row["start"], 1) for row in rows],
        [row["bits_per_byte"] for row in rows],
        where="post",
        marker="o",
    )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("position in the stream, bytes")
    axes.set_ylabel("bits per byte")
    figure.savefig(path, dpi=120)


def _figure():
    # pyplot would keep global figures and look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    return figure, figure.subplots()
