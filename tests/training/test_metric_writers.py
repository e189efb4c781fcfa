"""Where metrics go, with the packages themselves where they are installed."""

import ast
import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from nl_jax.errors import InputError
from nl_jax.training import JsonLines, MeshConfig, TensorBoard, Tracker, train
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
def test_tensorboard_marks_steps_that_come_again(tmp_path):
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    run_twice(lambda: TensorBoard(tmp_path))
    events = []
    for path in sorted(tmp_path.iterdir()):
        data = path.read_bytes()
        while data:  # Length, checksum, event, checksum.
            size = int.from_bytes(data[:8], "little")
            events.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    found = [
        (event.step, value.tag, value.simple_value)
        for event in events
        for value in event.summary.value
    ]
    assert found == [
        (step, "loss", pytest.approx(1 / step)) for step in (1, 2, 3, 3, 4)
    ]
    starts = [
        event.step
        for event in events
        if event.session_log.status == SessionLog.START
    ]
    assert starts == [1, 3]  # TensorBoard drops what is older from there on.


@needs["wandb"]
@pytest.mark.slow
def test_wandb_goes_on_with_one_run(tmp_path):
    import wandb

    seen = []

    class Watched(Tracker):
        def close(self):
            seen.append((wandb.run.id, wandb.run.config["seed"]))
            super().close()

    run_twice(lambda: Watched("wandb", tmp_path, mode="offline"))
    first, second = seen
    assert first == second and first[0].startswith(tmp_path.name)
    assert first[1] == 5
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert [b"0.5" in path.read_bytes() for path in files] == [True, False]
    assert [b"0.25" in path.read_bytes() for path in files] == [False, True]


@needs["trackio"]
@pytest.mark.slow
def test_trackio_goes_on_with_one_run(tmp_path):
    """In a process of its own: the package reads its folder at import."""
    program = (
        "import pathlib, sys, tests.training.test_metric_writers as t\n"
        "from nl_jax.training import Tracker\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "t.run_twice(lambda: Tracker('trackio', folder))\n"
        "import trackio\n"
        "(run,) = trackio.Api().runs('nl_jax')\n"
        "logs = trackio.sqlite_storage.SQLiteStorage.get_logs\n"
        "found = logs('nl_jax', run.name)\n"
        "print([run.name, run.config['seed'],"
        " [(row['step'], row['loss']) for row in found]])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        env=os.environ | {"TRACKIO_DIR": str(tmp_path / "db")},
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    line = next(x for x in done.stdout.splitlines() if x.startswith("['"))
    name, seed, rows = ast.literal_eval(line)
    assert name.startswith(tmp_path.name) and seed == 5
    assert rows == [(step, 1 / step) for step in (1, 2, 3, 3, 4)]


def test_a_missing_package_names_its_extra(tmp_path, monkeypatch):
    for package, extra, make in (
        ("tensorboardX", "tensorboard", TensorBoard),
        ("wandb", "wandb", lambda folder: Tracker("wandb", folder)),
        ("trackio", "trackio", lambda folder: Tracker("trackio", folder)),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(InputError, match=rf"{package}.*\[{extra}\]"):
            make(tmp_path)
    with pytest.raises(InputError, match="package='mlflow' must be one of"):
        Tracker("mlflow", tmp_path)


class Kept:
    """A writer of a user's own."""

    def __init__(self):
        self.calls = []

    def begin(self, step, config):
        self.calls.append(("begin", step, config["steps"]))

    def write(self, step, values):
        self.calls.append(("write", step, *sorted(values)))

    def close(self):
        self.calls.append(("close",))


def test_training_calls_writers_of_ones_own(tiny, tmp_path):
    """With a folder or without one, and closes them whatever happens."""
    for workdir in (None, tmp_path / "run"):
        writer = Kept()
        result = train(tiny(steps=4, eval_every=2), workdir, writers=[writer])
        begin, *written, end = writer.calls
        assert begin == ("begin", 0, 4) and end == ("close",)
        assert [call[1] for call in written] == [1, 2, 2, 3, 4, 4]
        assert written == [
            ("write", row["step"], *sorted(row.keys() - {"step"}))
            for row in result.records
        ]
    writer = Kept()
    train(tiny(steps=4, eval_every=2), tmp_path / "run", writers=[writer])
    assert writer.calls == [("begin", 4, 4), ("close",)]
    writer = Kept()
    with pytest.raises(InputError):
        train(tiny(mesh=MeshConfig(data=3)), writers=[writer])
    assert writer.calls == [("close",)]
