import importlib.util
import logging

import pytest

from nl_jax.errors import InputError
from nl_jax.training import JsonLines, TensorBoard
from nl_jax.training.reporting import Progress, read_json_lines


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
