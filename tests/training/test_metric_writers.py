"""Where metrics go, with the packages themselves where they are installed."""

import importlib.util

import pytest

from nl_jax.errors import InputError
from nl_jax.training import JsonLines, TensorBoard, Tracker
from nl_jax.training.metric_writers import read_json_lines

needs = {
    package: pytest.mark.skipif(
        importlib.util.find_spec(package) is None,
        reason=f"{package} is not installed",
    )
    for package in ("tensorboardX", "wandb", "trackio")
}


def run_twice(make):
    """A run that is killed after step 3 and goes on from step 2."""
    for first, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        writer = make()
        writer.begin(first, {"seed": 5, "model": {"name": "hope"}})
        for step in steps:
            writer.write(step, {"loss": 1 / step})
        writer.close()


def test_lines_after_the_last_checkpoint_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    run_twice(lambda: JsonLines(path))
    with path.open("a") as file:
        file.write('{"step": 5, "lo')  # Cut off by a kill.
    found = read_json_lines(path)
    assert found == [{"step": s, "loss": 1 / s} for s in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    "text",
    [
        '{"loss": 1.0}\n',
        "loss,1.0",
        '{"step": 1}\n{"step": \n{"step": 3}\n',
        '{"step": "1"}\n',
        "[1]\n",
        "\udcff",
    ],
)
def test_other_files_are_refused_and_kept(tmp_path, text):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(kept := text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        JsonLines(path).begin(0)
    assert path.read_bytes() == kept


@needs["tensorboardX"]
def test_tensorboard_has_each_step_once(tmp_path):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401

    run_twice(lambda: TensorBoard(tmp_path))
    events = []
    for path in sorted(tmp_path.iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            events.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    assert events


@needs["wandb"]
@pytest.mark.slow
def test_wandb_offline_holds_the_run(tmp_path, monkeypatch): ...


def test_a_missing_package_names_its_extra(tmp_path, monkeypatch):
    for package, extra, make in (
        ("tensorboardX", "tensorboard", lambda: TensorBoard(tmp_path)),
        ("wandb", "wandb", lambda: Tracker("wandb", tmp_path)),
        ("trackio", "trackio", lambda: Tracker("trackio", tmp_path)),
    ):
        monkeypatch.setitem(__import__("sys").modules, package, None)
        with pytest.raises(InputError, match=rf"{package}.*\[{extra}\]"):
            make()
    with pytest.raises(InputError, match="package='mlflow' must be one of"):
        Tracker("mlflow", tmp_path)
