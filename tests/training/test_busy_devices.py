"""What keeps devices busy: batches put ahead, metrics fetched now and then."""

import logging
import os
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.profiler import ProfileData

from nl_jax.data import Document, DocumentsInMemory, make_iterator
from nl_jax.data.iterator import PrefetchedBatches
from nl_jax.errors import DivergedError, InputError
from nl_jax.training import (
    Checkpoints,
    cache_programs,
    device_peaks,
    loop,
    run_clock,
    train,
)
from nl_jax.training.run_clock import first_start
from tests.training.test_loop import lines


def wrap_step(monkeypatch, after, compiling=lambda: None):
    """Changes what steps return by ``after(step, state, metrics)``."""
    real = loop.compile_programs

    def compiled(*arguments):
        compiling()
        programs, started = real(*arguments), []

        def train_step(state, batch):
            started.append(batch)
            return after(len(started), *programs.train_step(state, batch))

        return programs._replace(train_step=train_step)

    monkeypatch.setattr(loop, "compile_programs", compiled)


def test_metrics_are_fetched_together_where_they_are_logged(tiny, monkeypatch):
    """Those of steps 1 to 4 after step 5 was started, the rest at the end."""
    fetched, newest = [], [0]

    class Watched:
        def __init__(self, array):
            self._array = array

        def __array__(self, *unused, **options):
            fetched.append(newest[0])
            return np.asarray(self._array)

    def after(step, state, metrics):
        newest[0] = step
        return state, jax.tree.map(Watched, metrics)

    whole = train(tiny())
    wrap_step(monkeypatch, after)
    result = train(tiny(log_every=4))
    assert fetched == [5] * 4 * 4 + [6] * 2 * 4  # 3 sums and a norm each.
    assert [row["step"] for row in result.records if "loss" in row] == [4, 6]
    assert "mfu" not in result.records[0]  # What a CPU can do is not known.
    for row in result.records[:2]:
        same = whole.records[row["step"] - 1]
        for column in ("loss", "grad_norm", "learning_rate", "tokens"):
            assert row[column] == same[column]


def test_a_loss_between_two_records_stops_the_run_too(tiny, monkeypatch):
    def after(step, state, metrics):
        norm = np.float32(np.nan if step == 2 else 1)
        return state, metrics | {"grad_norm": norm}

    wrap_step(monkeypatch, after)
    with pytest.raises(
        DivergedError, match=r"stopped at step 2: .* norm nan; .* Lower"
    ) as error:
        train(tiny(log_every=4))
    assert error.value.reason.endswith("norm nan")


def test_batches_are_put_ahead_by_another_thread():
    """Two wait while one is used; the position is that of the last one used."""
    ids = np.arange(200, dtype=np.int32)
    put, waiting = [], threading.Semaphore(0)

    def note(batch):
        put.append(threading.current_thread())
        waiting.release()
        return jax.tree.map(jax.device_put, batch)

    options = {"seq_len": 8, "batch_size": 2, "seed": 0}
    source = [DocumentsInMemory([Document(ids)])]
    plain = make_iterator(source, **options)
    ahead = make_iterator(source, **options, put=note)
    for batch in (next(plain), next(plain)):
        found = next(ahead)
        assert isinstance(found.tokens, jax.Array)
        np.testing.assert_array_equal(found.tokens, batch.tokens)
    for _ in range(4):
        assert waiting.acquire(timeout=30)
    assert threading.current_thread() not in put
    assert ahead.get_state() == plain.get_state()
    plain.close()
    ahead.close()


def traced_steps(folder):
    """The steps that a trace shows."""
    (file,) = folder.glob("plugins/profile/*/*.xplane.pb")
    events = [
        event
        for plane in ProfileData.from_file(str(file)).planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    ]
    return {dict(event.stats)["step_num"] for event in events}


@pytest.mark.slow
def test_a_trace_of_some_steps_is_written_once(tiny, tmp_path, caplog):
    logging.getLogger("nl_jax").propagate = True
    for times in (1, 2):
        train(tiny(log_every=4), tmp_path, profile=(3, 2))
        assert traced_steps(tmp_path / "profile") == {3, 4}
        warned = "the steps to trace were done before" in caplog.text
        assert warned == (times == 2)


def test_a_trace_of_no_steps_is_refused(tiny, tmp_path):
    for workdir, profile, words in (
        (None, (1, 1), "profile needs a workdir"),
        (tmp_path / "run", (7, 1), "profile=7:1 must begin with .* 1 to 6,"),
        (tmp_path / "run", (0, 1), "profile=0:1"),
        (tmp_path / "run", (1, -1), "profile=1:-1"),
    ):
        with pytest.raises(InputError, match=words):
            train(tiny(), workdir, profile=profile)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_trace_that_fails_is_left_out(tiny, tmp_path, caplog):
    logging.getLogger("nl_jax").propagate = True
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    # There can be one only.
    with jax.profiler.trace(tmp_path / "mine", profiler_options=options):
        assert train(tiny(), tmp_path / "run", profile=(2, 1)).step == 6
    assert "no trace in" in caplog.text
    assert "Only one profile may be run at a time" in caplog.text


class Clock:
    """A clock that moves where a test says so."""

    now = 1000.0

    def time(self):
        return self.now

    def tick(self, seconds):
        self.now += seconds


@pytest.mark.parametrize("damaged", [False, True])
def test_goodput_goes_on_after_a_restart(tiny, tmp_path, monkeypatch, damaged):
    """A step takes 2 s, a batch 0.5, saving 1, compiling 10.

    The run is killed in step 6, after 24.5 s, and begins anew 100 s later with
    step 5: 14 s in steps are 12 s of kept ones. At their peak the devices would
    do the 64 tokens of a step in 1 s.
    """
    monkeypatch.setitem(device_peaks._TERA, "cpu", 64 * 3e6 / 1e12)
    monkeypatch.setattr(device_peaks, "model_flops", lambda model, length: 3e6)
    clock, batches = Clock(), [0]
    fake = types.SimpleNamespace(time=clock.time, monotonic=clock.time)
    for module in (loop, run_clock):
        monkeypatch.setattr(module, "time", fake)
    save, read = Checkpoints.save, PrefetchedBatches.__next__

    def saving(*arguments):
        clock.tick(1)
        save(*arguments)

    def reading(iterator):
        batches[0] += 1
        if batches[0] == 6:
            raise KeyboardInterrupt
        clock.tick(0.5)
        return read(iterator)

    def after(step, *result):
        clock.tick(2)
        return result

    monkeypatch.setattr(Checkpoints, "save", saving)
    monkeypatch.setattr(PrefetchedBatches, "__next__", reading, raising=False)
    wrap_step(monkeypatch, after, lambda: clock.tick(10))
    with pytest.raises(KeyboardInterrupt):
        train(tiny(log_every=2), tmp_path)
    assert clock.now == 1024.5
    clock.tick(100)
    train(tiny(log_every=2), tmp_path)
    columns = ("step", "step_seconds", "input_wait_seconds", "goodput", "mfu")
    found = [
        tuple(row[column] for column in columns)
        for row in lines(tmp_path)
        if "loss" in row
    ]
    # The first batch of each start comes before the compilation.
    assert found == [
        (2, 4.5 / 2, 0.5 / 2, round(4 / 15, 4), round(1 / 2.25, 4)),
        (4, 5 / 2, 1 / 2, round(8 / 21, 4), 0.4),
        (6, 4.5 / 2, 0.5 / 2, round(12 / 139.5, 4), 0.4444),
    ]


def test_the_first_start_is_noted_once(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(run_clock, "time", clock)
    file = tmp_path / "started.json"
    assert first_start(file) == 1000
    clock.tick(50)
    assert first_start(file) == 1000
    file.unlink()
    assert first_start(file, {"started": 900.0}) == 900
    assert first_start(file) == 900


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "\x00", '{"time": "noon"}', '{"time": true}'),
        *('{"time": NaN}', '{"time": -1}', '{"time": 1e12}'),
    ],
)
def test_a_damaged_start_is_not_made_up(tmp_path, caplog, text):
    """The run goes on, without goodput unless its checkpoint has the time."""
    logging.getLogger("nl_jax").propagate = True
    file = tmp_path / "started.json"
    file.write_text(text)
    for saved in (None, {}, {"started": -1}):
        assert first_start(file, saved) is None
    # A logger with two handlers shows a record twice.
    said = {id(r) for r in caplog.records if "no goodput" in r.getMessage()}
    assert file.read_text() == text and len(said) == 3
    clock = run_clock.RunClock(first_start(file))
    assert set(clock.measure(1)) == {"step_seconds", "input_wait_seconds"}
    assert first_start(file, {"started": 900.0}) == first_start(file) == 900
    file.unlink()
    assert first_start(file, {}) is None  # Checkpoints once had no such time.
    assert not file.exists()


def test_programs_are_kept_in_a_folder_of_ones_own(
    cache_hits, tmp_path, monkeypatch, caplog
):
    logging.getLogger("nl_jax").propagate = True
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: -1)
        cache_programs(tmp_path / "theirs")
    with monkeypatch.context() as patch:  # Root may write into any folder.
        patch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
        cache_programs(tmp_path / "read_only")
    (tmp_path / "file").write_text("")
    cache_programs(tmp_path / "file")
    for name in ("theirs", "read_only", "file"):
        words = f"compiled programs cannot be kept in {tmp_path / name}"
        assert words in caplog.text
    assert jax.config.jax_compilation_cache_dir is None
    cache_programs(tmp_path / "mine")
    cache_programs(tmp_path / "other")  # One has been chosen.
    found = jax.config.jax_compilation_cache_dir
    assert found == str(tmp_path / "mine")
    for started in range(2):
        jax.clear_caches()
        jax.jit(lambda x: x * 3 + 1)(jnp.ones(3))
        assert len(cache_hits) == started * len(os.listdir(found))
