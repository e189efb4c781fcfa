import importlib.util
import logging

import numpy as np
import pytest

from nl_jax.continual import PositionTable
from nl_jax.errors import InputError
from nl_jax.training import JsonLines, TensorBoard, plot_losses, plot_positions
from nl_jax.training.reporting import (
    Progress,
    merge_buckets,
    read_json_lines,
    settled_limits,
)


def test_lines_after_the_last_checkpoint_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonLines(path)
    for step in (1, 2, 3):
        writer.write(step, {"loss": step / 3})
    writer.close()
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    writer = JsonLines(path, last_step=2)
    writer.write(3, {"loss": 0.5})
    writer.close()
    found = read_json_lines(path)
    assert [line["step"] for line in found] == [1, 2, 3]
    assert found[0]["loss"] == 1 / 3 and found[2]["loss"] == 0.5


def test_tensorboard_names_its_extra(tmp_path):
    if importlib.util.find_spec("tensorboardX"):
        writer = TensorBoard(tmp_path)
        writer.write(1, {"loss": 1.0})
        writer.close()
        assert list(tmp_path.iterdir())
    else:
        with pytest.raises(InputError, match=r"\[tensorboard\]"):
            TensorBoard(tmp_path)


def test_plain_lines_off_a_terminal(caplog):
    logging.getLogger("nl_jax").propagate = True
    with caplog.at_level(logging.INFO), Progress(100, 0, 10, 0.0) as progress:
        progress.update(50, 1.5, 2.0)
    assert "step 50/100" in caplog.text and "left" in caplog.text


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
