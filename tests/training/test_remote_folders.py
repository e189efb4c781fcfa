"""A run on ``gs://``: its objects are files here, but behave as objects do."""

import json
import os

import jax
import numpy as np
import pytest
from etils import epath
from etils.epath import backend, gpath, register
from orbax.checkpoint._src.path import gcs_utils

from nl_jax.errors import InputError
from nl_jax.training import (
    begin_run,
    flag_config,
    list_steps,
    load_model,
    metric_writers,
    open_folder,
    train,
)
from nl_jax.training.metric_writers import read_json_lines
from tests.training.test_busy_devices import traced_steps


class Objects:
    """A backend of ``epath`` that keeps objects as files.

    There is no appending, and a folder exists with its first object.
    """

    def __init__(self, root):
        self._root = root

    def place(self, path):
        return os.fspath(path).replace("gs://", f"{self._root}/")

    def open(self, path, mode):
        assert "a" not in mode, "objects cannot be appended to"
        if "w" in mode:
            os.makedirs(os.path.dirname(self.place(path)), exist_ok=True)
        return backend.os_backend.open(self.place(path), mode)

    def walk(self, top, **options):
        for folder, *rest in backend.os_backend.walk(self.place(top)):
            yield str(folder).replace(f"{self._root}/", "gs://"), *rest

    def glob(self, path):
        found = backend.os_backend.glob(self.place(path))
        return [name.replace(f"{self._root}/", "gs://") for name in found]

    def __getattr__(self, name):
        real = getattr(backend.os_backend, name)

        def call(path, *rest, **options):
            if name in ("rename", "replace"):
                rest = [self.place(rest[0])]
            return real(self.place(path), *rest, **options)

        return call


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The folder in which buckets lie."""
    objects = Objects(tmp_path / "objects")
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", objects)
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setattr(
        gcs_utils,
        "get_kvstore_for_gcs",
        lambda path: {"driver": "file", "path": objects.place(path)},
    )
    monkeypatch.setattr(
        gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False
    )
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "objects"


def test_a_remote_run_is_saved_and_goes_on(store, tiny):
    """A save that only began does not count; nothing is written here."""
    workdir = "gs://bucket/some/run"
    whole = train(tiny(), workdir, profile=(5, 9))
    folder = store / "bucket" / "some" / "run"
    checkpoints = folder / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["2", "4", "6"]
    assert [s.problem for s in list_steps(workdir)] == [""] * 3
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    assert list(map(json.loads, rows)) == whole.records
    assert traced_steps(folder / "profile") == {5, 6}
    # As if the run had been killed while it saved step 6.
    (checkpoints / "6" / "commit_success.txt").unlink()
    assert load_model(workdir).meta["step"] == 4
    again = train(tiny(), workdir)
    assert [r["step"] for r in again.records] == [1, 2, 3, 4, 5, 6, 6]
    jax.tree.map(
        np.testing.assert_array_equal, again.variables, whole.variables
    )
    loaded = load_model(workdir)
    assert loaded.meta["step"] == 6
    flags = flag_config(init_from=workdir)
    assert begin_run(flags, "other")[0].model == loaded.model.config
    assert not os.listdir()


def test_remote_metrics_are_written_now_and_then(store, monkeypatch):
    """After a minute, where a checkpoint is saved, and at the end."""
    now = [100.0]
    clock = type("Clock", (), {"monotonic": staticmethod(lambda: now[0])})
    monkeypatch.setattr(metric_writers, "time", clock)
    path = open_folder("gs://bucket/run") / "metrics.jsonl"

    def steps():
        return [row["step"] for row in read_json_lines(path)]

    writer = metric_writers.JsonLines(path)
    writer.begin(0)
    assert steps() == []
    for seconds, step, kept in ((30, 1, []), (60, 2, []), (61, 3, [1, 2, 3])):
        now[0] = 100.0 + seconds
        writer.write(step, {})
        assert steps() == kept
    writer.write(4, {})
    writer.flush()
    writer.write(5, {})
    assert steps() == [1, 2, 3, 4]
    writer.close()
    writer = metric_writers.JsonLines(path)
    writer.begin(4)
    writer.write(5, {})
    writer.close()
    assert steps() == [1, 2, 3, 4, 5]


def test_folders_out_of_reach_are_refused(monkeypatch):
    for path, words in (
        ("s3://b/run", r"--workdir=s3://b/run has an unknown scheme"),
        ("ftp://host/run", r"--workdir=ftp://host/run has an unknown scheme"),
        ("gs://b/run", r"needs a package: .*gcsfs.*nl-jax\[gcs\]"),
        ("gs://c/run", r"cannot reach --workdir=gs://c/run: no credentials"),
    ):
        if path == "gs://b/run":
            monkeypatch.setitem(
                gpath._PREFIX_TO_BACKEND, "gs", backend.fsspec_backend
            )
            monkeypatch.setattr(
                backend.fsspec_backend,
                "exists",
                raising(ImportError("Please install gcsfs")),
            )
        if path == "gs://c/run":
            monkeypatch.setattr(
                backend.fsspec_backend,
                "exists",
                raising(RuntimeError("no credentials\nand more")),
            )
        with pytest.raises(InputError, match=words):
            open_folder(path)


def test_a_registered_scheme_may_lead_to_a_local_folder(tmp_path, monkeypatch):
    class Here:
        def __new__(cls, path):
            return epath.Path(tmp_path / path.removeprefix("here://"))

    monkeypatch.setitem(register._URI_PREFIXES_TO_CLS, "here://", Here)
    assert open_folder("here://run") == epath.Path(tmp_path / "run")
    with pytest.raises(InputError, match="holds no checkpoint"):
        load_model("here://run")


def raising(error):
    def call(*arguments):
        raise error

    return call
