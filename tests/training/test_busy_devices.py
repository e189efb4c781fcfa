"""What keeps devices busy: batches put ahead, metrics fetched now and then."""

import threading
import types

import jax
import numpy as np
import pytest

from nl_jax.data import Document, DocumentsInMemory, make_iterator
from nl_jax.data.iterator import PrefetchedBatches
from nl_jax.errors import DivergedError, InputError
from nl_jax.training import Checkpoints, loop, run_clock, train
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
    for row in result.records[:2]:
        same = whole.records[row["step"] - 1]
        for column in ("loss", "grad_norm", "learning_rate", "tokens"):
            assert row[column] == same[column]


def test_a_loss_between_two_records_stops_the_run_too(tiny, monkeypatch):
    def after(step, state, metrics):
        norm = np.float32(np.nan if step == 2 else 1)
        return state, metrics | {"grad_norm": norm}

    wrap_step(monkeypatch, after)
    with pytest.raises(DivergedError, match=r"stopped at step 2: .* norm nan"):
        train(tiny(log_every=4))


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


class Clock:
    """A clock that moves where a test says so."""

    now = 1000.0

    def time(self):
        return self.now

    def tick(self, seconds):
        self.now += seconds


def test_goodput_goes_on_after_a_restart(tiny, tmp_path, monkeypatch):
    """A step takes 2 s, a batch 0.5, saving 1, compiling 10.

    The run is killed in step 6, after 24.5 s, and begins anew 100 s later with
    step 5: 14 s in steps are 12 s of kept ones.
    """
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
    columns = ("step", "step_seconds", "input_wait_seconds", "goodput")
    found = [
        tuple(row[column] for column in columns)
        for row in lines(tmp_path)
        if "loss" in row
    ]
    # The first batch of each start comes before the compilation.
    assert found == [
        (2, 4.5 / 2, 0.5 / 2, round(4 / 15, 4)),
        (4, 5 / 2, 1 / 2, round(8 / 21, 4)),
        (6, 4.5 / 2, 0.5 / 2, round(12 / 139.5, 4)),
    ]


def test_the_first_start_is_noted_once(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(run_clock, "time", clock)
    file = tmp_path / "started.json"
    assert first_start(file) == 1000
    clock.tick(50)
    assert first_start(file) == 1000
    for text in ("", "[]", '{"time": "noon"}', "{}"):
        file.write_text(text)
        with pytest.raises(InputError, match=r"started\.json does not hold"):
            first_start(file)
