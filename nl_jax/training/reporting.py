"""What a run shows: progress and figures."""

import io
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import tqdm
from etils import epath

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
    curves = [[value] for value in references.values()]
    for key, label, marker in (
        ("bits_per_byte", "training batch", ""),
        ("held_out_bits_per_byte", "held out", "o"),
    ):
        points = [(r["step"], r[key]) for r in records if key in r]
        if points:
            axes.plot(*zip(*points, strict=True), marker=marker, label=label)
            curves.append([value for _, value in points])
    for color, (name, value) in enumerate(references.items(), 2):
        axes.axhline(value, color=f"C{color}", linestyle="--", label=name)
    axes.set_ylim(settled_limits(curves))
    axes.set_xlabel("step")
    axes.set_ylabel("bits per byte")
    axes.legend()
    write_figure(path, figure)


def plot_positions(path, rows: Sequence[Mapping]) -> None:
    """Plots bits per byte against the position in a stream.

    Buckets of fewer than 64 bytes, whose means vary most, are drawn together
    with their neighbours.

    Args:
        path: path of the image.
        rows: ``start`` and ``bytes`` of buckets, and their ``bits_per_byte``.
    """
    buckets = merge_buckets(rows, 64)
    figure, axes = _figure()
    edges = [max(bucket["start"], 1) for bucket in buckets]
    last = buckets[-1]["start"] + buckets[-1]["bytes"]
    axes.stairs(
        [bucket["bits_per_byte"] for bucket in buckets],
        [*edges, last],
        baseline=None,
        linewidth=2,
    )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("position in the stream, bytes")
    axes.set_ylabel("bits per byte")
    write_figure(path, figure)


def merge_buckets(rows: Sequence[Mapping], least: int) -> list[dict]:
    """Merges neighbouring buckets until each has ``least`` bytes.

    Example:
        >>> rows = [
        ...     {"start": 0, "bytes": 1, "bits_per_byte": 9.0},
        ...     {"start": 2, "bytes": 2, "bits_per_byte": 3.0},
        ...     {"start": 4, "bytes": 1, "bits_per_byte": 4.0},
        ... ]
        >>> [(b["start"], b["bits_per_byte"]) for b in merge_buckets(rows, 3)]
        [(0, 4.75)]
        >>> merge_buckets(rows, 1) == rows
        True
    """
    out: list[dict] = []
    for number, row in enumerate(rows):
        left = sum(row["bytes"] for row in rows[number:])
        if not out or (out[-1]["bytes"] >= least and left >= least):
            out.append(dict(row))
            continue
        last = out[-1]
        total = last["bytes"] + row["bytes"]
        bits = last["bits_per_byte"] * last["bytes"]
        bits += row["bits_per_byte"] * row["bytes"]
        last |= {"bytes": total, "bits_per_byte": bits / total}
    return out


def settled_limits(curves: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Returns limits of an axis that the first tenth of each curve may leave.

    The losses of a run's first steps are so high that the rest would look flat.

    Example:
        >>> settled_limits([[90.0] + [2.0] * 9 + [1.0] * 10, [1.5]])
        (0.95, 2.05)
    """
    curves = [y for y in curves if len(y)]
    low = min(min(y) for y in curves)
    high = max(max(y[len(y) // 10 :]) for y in curves)
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def write_figure(path: str | os.PathLike, figure: Any) -> None:
    """Writes an image, of the kind that the end of its path says."""
    image = io.BytesIO()
    file = epath.Path(path)
    figure.savefig(image, dpi=120, format=file.suffix[1:])
    file.write_bytes(image.getvalue())


def _figure():
    # pyplot would keep global figures and look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    return figure, figure.subplots()
