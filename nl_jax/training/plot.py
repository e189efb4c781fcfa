"""Figures of a run, as files."""

from collections.abc import Mapping, Sequence


def plot_losses(
    path, records: Sequence[Mapping], references: Mapping[str, float]
) -> None:
    """Draws bits per byte of training and held-out text over steps.

    Args:
        path: of the image.
        records: lines of ``metrics.jsonl``.
        references: horizontal lines by name, such as gzip's bits per byte.
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
    """Draws bits per byte over the position in a stream.

    Args:
        path: of the image.
        rows: with ``start`` (bytes) and ``bits_per_byte``.
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
    # Not pyplot: its figures are global, and it looks for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    return figure, figure.subplots()
