import logging

import numpy as np

from nl_jax.training import PositionTable, plot_losses, plot_positions
from nl_jax.training.reporting import (
    Progress,
    merge_buckets,
    settled_limits,
)


def test_plain_lines_off_a_terminal(caplog):
    logging.getLogger("nl_jax").propagate = True
    with caplog.at_level(logging.INFO), Progress(100, 0, 10, 0.0) as progress:
        progress.update(50, 1.5, 2.0)
        progress.note(50, "held out: 1.9")
    assert "step 50/100" in caplog.text and "left" in caplog.text
    assert "step 50/100  held out: 1.9" in caplog.text


def test_buckets_of_few_bytes_are_drawn_together(tmp_path):
    table = PositionTable()
    nats = np.random.default_rng(0).random(300)
    table.add(nats, np.ones(300))
    found = merge_buckets(table.rows(), 64)
    # The first byte is not predicted, and 46 are too few at the end.
    assert [(b["start"], b["bytes"]) for b in found] == [(0, 127), (128, 173)]
    bits = [nats[:127].mean(), nats[127:].mean()] / np.log(2)
    np.testing.assert_allclose([b["bits_per_byte"] for b in found], bits)
    plot_positions(tmp_path / "a.png", table.rows())
    assert (tmp_path / "a.png").stat().st_size
    few = table.rows()[:3]
    (one,) = merge_buckets(few, 64)
    assert one["bytes"] == 7


def test_the_first_losses_do_not_flatten_the_rest(tmp_path):
    curve = np.append(np.linspace(50, 2, 10), np.full(90, 2.0))
    low, high = settled_limits([curve, [], [2.4]])
    assert low < 2 and 2.4 < high < 2.5
    records = [{"step": 1, "bits_per_byte": 3.0}]
    plot_losses(tmp_path / "a.png", records, {"gzip -9": 2.4})
    assert (tmp_path / "a.png").stat().st_size
