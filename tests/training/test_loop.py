"""Runs whole: what they write, how they go on, what they refuse."""

import dataclasses
import json
import os
import pathlib
import resource
import shutil
import signal
import time

import jax
import numpy as np
import optax
import pytest

from nl_jax.data import BPETokenizer, DataConfig, load_corpus
from nl_jax.errors import InputError
from nl_jax.memory import OBJECTIVES
from nl_jax.models import configure
from nl_jax.training import (
    MeshConfig,
    OptimizerConfig,
    begin_run,
    checkpoint,
    flag_config,
    load_model,
    loop,
    train,
)

CLOCKS = (
    "seconds",
    "tokens_per_second",
    "step_seconds",
    "input_wait_seconds",
    "goodput",
)
"""Columns of ``metrics.jsonl`` that no two runs share."""


def lines(workdir):
    text = pathlib.Path(workdir, "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def losses(workdir):
    return [(r["step"], r["loss"]) for r in lines(workdir) if "loss" in r]


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A run that nothing disturbed; copy it before changing it."""
    workdir = tmp_path_factory.mktemp("run") / "whole"
    return workdir, train(tiny(), workdir)


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "copy")
    return tmp_path / "copy"


def before_step(monkeypatch, step, action):
    """Makes the data of one step do something first."""
    real = loop.train_batches

    def wrapped(*arguments, **options):
        iterator = real(*arguments, **options)

        class Acting:
            count = 0

            def __next__(self):
                self.count += 1
                if self.count == step:
                    action()
                return next(iterator)

            def get_state(self):
                return iterator.get_state()

            def close(self):
                iterator.close()

        return Acting()

    monkeypatch.setattr(loop, "train_batches", wrapped)


def steps_in(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


def test_a_run_writes_everything(finished):
    workdir, result = finished
    assert [step for step, _ in losses(workdir)] == [1, 2, 3, 4, 5, 6]
    assert lines(workdir) == result.records
    assert lines(workdir)[-1].keys() == {"step", "held_out_bits_per_byte"}
    assert json.loads((workdir / "config.json").read_text())["steps"] == 6
    assert steps_in(workdir) == [2, 4, 6]
    assert set(result.compile_seconds) == {"train_step", "eval_step"}
    assert result.held_out_bits_per_byte < 9


def test_without_a_workdir_nothing_is_written(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = train(tiny())
    assert result.step == 6 and not list(tmp_path.iterdir())


def test_a_restart_gives_the_same_numbers(finished, copy, tiny):
    """As after a kill -9 between steps 4 and 6: lines of 5 are thrown away."""
    workdir, whole = finished
    shutil.rmtree(copy / "checkpoints" / "6")
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # Cut off in the middle of a line.
    result = train(tiny(), copy)
    assert losses(copy) == losses(workdir)
    jax.tree.map(
        np.testing.assert_array_equal, result.variables, whole.variables
    )
    assert result.held_out_bits_per_byte == whole.held_out_bits_per_byte


def test_seconds_go_on_after_a_restart(copy, tiny):
    shutil.rmtree(copy / "checkpoints" / "6")
    before = [row | {"seconds": 1000.0} for row in lines(copy)]
    (copy / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in before)
    )
    train(tiny(), copy)
    seconds = [row["seconds"] for row in lines(copy) if "loss" in row]
    assert seconds[:4] == [1000.0] * 4
    assert 1000 < seconds[4] <= seconds[5] < 1100


def test_a_finished_run_stays_finished(copy, finished, tiny):
    result = train(tiny(), copy)
    assert result.step == 6
    assert losses(copy) == losses(finished[0])
    assert result.held_out_bits_per_byte == (finished[1].held_out_bits_per_byte)


def test_another_config_is_refused_by_name(copy, tiny):
    before = lines(copy)
    with pytest.raises(InputError, match=r"optimizer.learning_rate=0.01.*0.5"):
        train(tiny(optimizer=OptimizerConfig(0.5, 2)), copy)
    with pytest.raises(InputError, match=r"model.d_model=16"):
        train(tiny(model={"d_model": 32}, accept_new_config=True), copy)
    other = OptimizerConfig(1e-2, 2, name="m3")
    with pytest.raises(InputError, match=r"optimizer.name='adamw'.*'m3'"):
        train(tiny(optimizer=other, accept_new_config=True), copy)
    data = DataConfig(**dataclasses.asdict(tiny().data) | {"tokenizer": "bpe"})
    with pytest.raises(InputError, match=r"data.tokenizer='auto'"):
        train(tiny(data=data, accept_new_config=True), copy)
    assert lines(copy) == before


def test_a_new_config_can_be_accepted(copy, tiny, caplog):
    config = tiny(
        steps=8,
        log_every=3,
        optimizer=OptimizerConfig(1e-2, 9),
        accept_new_config=True,
    )
    assert train(config, copy).step == 8
    assert "optimizer.warmup_steps=9 is more than steps=8" in caplog.text
    assert losses(copy)[-1][0] == 8


def test_batches_of_another_size_go_on_in_the_text(copy, tiny):
    """Six batches of 4 and one of 8 hold 32 sequences of 16 tokens."""
    config = tiny(steps=7, batch_size=8, accept_new_config=True)
    train(config, copy)
    tokens = [r["tokens"] for r in lines(copy) if "tokens" in r]
    assert tokens == [64, 128, 192, 256, 320, 384, 512]
    folder = copy / "checkpoints" / "7" / "meta"
    saved = "".join(p.read_text() for p in folder.rglob("*") if p.is_file())
    assert '"drawn": [32]' in saved


def test_a_run_with_bpe_tokens_goes_on(tiny, tmp_path):
    """It resumes and is loaded with the same tokens; a file gives them too."""
    tokenizer = BPETokenizer.train(load_corpus(tiny().data).train, 300)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(tokenizer.to_json()["model"]))
    for kind, size in (("bpe", {"bpe_vocab_size": 300}), (str(file), {})):
        data = dataclasses.replace(tiny().data, tokenizer=kind, **size)
        config = tiny(data=data, model={"vocab_size": 300}, steps=4)
        workdir = tmp_path / f"run {kind[-4:]}"
        whole = train(config, workdir)
        before = losses(workdir)
        shutil.rmtree(workdir / "checkpoints" / "4")
        again = train(config, workdir)
        assert losses(workdir) == before
        assert again.held_out_bits_per_byte == whole.held_out_bits_per_byte
        loaded = load_model(workdir).tokenizer.to_json()
        assert loaded == tokenizer.to_json()
    assert before == losses(tmp_path / "run bpe")
    moved = dataclasses.replace(data, tokenizer=str(tmp_path / "m.json"))
    file.rename(moved.tokenizer)
    flags = flag_config(data={"tokenizer": str(file)})
    assert begin_run(flags, workdir)[0].model.vocab_size == 300
    for found in (data, moved):  # Gone, and in another place.
        train(dataclasses.replace(config, data=found), workdir)
    plain = dataclasses.replace(data, tokenizer="byte")
    with pytest.raises(InputError, match=r"data.tokenizer=.*'byte'"):
        train(dataclasses.replace(config, data=plain), workdir)
    with pytest.raises(InputError, match="cannot read the tokenizer"):
        train(config, tmp_path / "new")
    other = BPETokenizer.train(b"other words", 270)
    file.write_text(json.dumps(other.to_json()["model"]))
    with pytest.raises(InputError, match="not the one that the checkpoint"):
        train(config, workdir)


def edit_configs(workdir, change):
    """Changes the configuration in each of three checkpoints."""
    changed = 0
    for path in (workdir / "checkpoints").glob("*/meta/*"):
        text = path.read_text()
        if '"matrix"' not in text:
            continue
        meta = json.loads(text)
        change(meta["config"])
        del meta["sums"]  # Versions with other fields wrote none.
        path.write_text(json.dumps(meta))
        changed += 1
    assert changed == 3


def test_a_checkpoint_from_before_some_field_goes_on(copy, finished, tiny):
    """What it does not say has the field's default."""

    def age(config):
        del config["optimizer"]["name"], config["data"]["stdlib"]
        model = config["model"]
        del model["deep"], model["lstm"], model["cms"]["form"], model["matrix"]

    edit_configs(copy, age)
    assert load_model(copy).model.config == tiny().model
    shutil.rmtree(copy / "checkpoints" / "6")
    assert train(tiny(), copy).step == 6
    assert losses(copy) == losses(finished[0])
    with pytest.raises(InputError, match=r"optimizer.name='adamw'.*'muon'"):
        train(tiny(optimizer=OptimizerConfig(1e-2, 2, name="muon")), copy)


def test_a_checkpoint_with_a_field_that_went_is_refused(copy, tiny):
    edit_configs(copy, lambda config: config["model"].update(delta_net=1))
    with pytest.raises(InputError, match=r"model.delta_net=1, but now.*None"):
        train(tiny(accept_new_config=True), copy)
    message = "a model of another version: unknown field delta_net"
    with pytest.raises(InputError, match=message):
        load_model(copy)


def test_m3_goes_on_with_the_same_numbers(tiny, tmp_path):
    """From step 6: gathered for the slow momentum, which moves at step 8."""
    config = tiny(optimizer=OptimizerConfig(1e-2, 2, name="m3"), steps=10)
    whole = train(config, tmp_path)
    before = losses(tmp_path)
    for number in (8, 10):
        shutil.rmtree(tmp_path / "checkpoints" / str(number))
    again = train(config, tmp_path)
    assert losses(tmp_path) == before
    jax.tree.map(
        np.testing.assert_array_equal, whole.variables, again.variables
    )


def test_changed_text_is_refused(copy, tiny, tmp_path):
    text = pathlib.Path(tiny().data.paths[0])
    original = text.read_bytes()
    try:
        text.write_bytes(original + b"more\n" * 9)
        with pytest.raises(InputError, match="text has changed"):
            train(tiny(), copy)
    finally:
        text.write_bytes(original)


def test_a_loss_that_is_not_finite_stops_the_run(tiny, tmp_path, monkeypatch):
    """Step 4 explodes, when it should be saved; that of step 2 is good."""
    real = loop.compile_programs

    def exploding(*arguments):
        programs, done = real(*arguments), iter(range(1, 99))

        def nan(leaf):
            value = np.full(leaf.shape, np.nan, leaf.dtype)
            return jax.device_put(value, leaf.sharding)

        def train_step(*state_and_tokens):
            state, metrics = programs.train_step(*state_and_tokens)
            if next(done) >= 4:
                variables = jax.tree.map(nan, state.variables)
                state = state._replace(variables=variables)
                sums = metrics["sums"]
                sums = sums._replace(nats=nan(sums.nats))
                metrics = metrics | {"sums": sums}
            return state, metrics

        return programs._replace(train_step=train_step)

    monkeypatch.setattr(loop, "compile_programs", exploding)
    with pytest.raises(InputError, match=r"step 4: loss nan.*step 2.*good"):
        train(tiny(), tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.meta["step"] == 2
    for leaf in jax.tree.leaves(loaded.variables):
        assert np.isfinite(leaf).all()


def test_a_full_disk_leaves_the_last_checkpoint(tiny, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    free = iter([usage.free])
    monkeypatch.setattr(
        checkpoint.shutil,
        "disk_usage",
        lambda path: usage._replace(free=next(free, 1000)),
    )
    with pytest.raises(InputError, match=r"could not save step 4.*step 2"):
        train(tiny(), tmp_path)
    monkeypatch.undo()
    assert load_model(tmp_path).meta["step"] == 2
    assert train(tiny(), tmp_path).step == 6


def test_a_disk_that_fills_while_saving(tiny, tmp_path, monkeypatch):
    """The system refuses to write more than 4 KiB into a file, from step 3."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit():
        while not (tmp_path / "checkpoints" / "2").exists():
            time.sleep(0.01)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))

    before_step(
        monkeypatch,
        4,
        limit,
    )
    try:
        message = r"could not save step 4.*too large.*step 2 is"
        with pytest.raises(InputError, match=message):
            train(tiny(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    monkeypatch.undo()
    assert load_model(tmp_path).meta["step"] == 2
    assert train(tiny(), tmp_path).step == 6


def test_a_truncated_checkpoint_is_refused(copy, tiny):
    """The array data of the last checkpoint is cut in half."""
    folder = copy / "checkpoints" / "6" / "variables" / "d"
    for file in folder.iterdir():
        os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(InputError, match=r"6 is damaged.*step 4 is intact"):
        train(tiny(), copy)
    with pytest.raises(InputError, match=r"6 is damaged"):
        load_model(copy)
    shutil.rmtree(copy / "checkpoints" / "6")
    assert load_model(copy).meta["step"] == 4


def test_a_foreign_checkpoint_is_refused(tiny, tmp_path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "checkpoints" / "3" / "weights.bin").write_bytes(b"x" * 99)
    for use in (load_model, lambda path: train(tiny(), path)):
        with pytest.raises(InputError, match="damaged or not a checkpoint"):
            use(tmp_path)
    with pytest.raises(InputError, match="no checkpoint"):
        load_model(tmp_path / "nowhere")


def test_a_tokenizer_that_does_not_match_is_refused(copy):
    for path in (copy / "checkpoints" / "6" / "meta").iterdir():
        text = path.read_text()
        if '"kind"' in text:
            meta = json.loads(text.replace('"hash": "byte"', '"hash": "other"'))
            del meta["sums"]
            path.write_text(json.dumps(meta))
    with pytest.raises(InputError, match=r"tokenizer.*not the one"):
        load_model(copy)


def test_a_model_smaller_than_its_tokenizer_is_refused(tiny):
    with pytest.raises(InputError, match="vocab_size=100 is smaller"):
        train(tiny(model={"vocab_size": 100}))


def test_a_signal_saves_and_stops(tiny, tmp_path, monkeypatch, finished):
    before_step(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(tiny(), tmp_path).step == 3
    monkeypatch.undo()
    assert steps_in(tmp_path)[-1] == 3
    train(tiny(), tmp_path)
    assert losses(tmp_path) == losses(finished[0])


def test_an_evaluation_that_a_signal_prevented_is_made_up_for(
    tiny, tmp_path, monkeypatch
):
    config = tiny(eval_every=2)
    whole = train(config)
    before_step(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(config, tmp_path).held_out_bits_per_byte is not None
    monkeypatch.undo()
    assert "held_out_bits_per_byte" not in lines(tmp_path)[-1]
    found = [dict(r) for r in train(config, tmp_path).records]
    for record in [*found, *whole.records]:
        for column in CLOCKS:
            record.pop(column, None)
    assert found == whole.records


def test_the_mesh_must_fit_the_devices(tiny):
    with pytest.raises(InputError, match="must multiply to the 1 devices"):
        train(tiny(mesh=MeshConfig(data=3)))


def test_an_optimizer_of_levels_without_a_name_is_refused(tiny, tmp_path):
    """Before anything is written: a checkpoint could not name it."""
    cms = {
        "objective": "local",
        "token_periods": (4,),
        "inner": optax.identity(),
    }
    model = configure("lstm", d_model=8, n_heads=1, cms=cms)
    config = dataclasses.replace(tiny(), model=model)
    with pytest.raises(InputError, match="holds an optax transformation"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    mine = dataclasses.replace(OBJECTIVES["l2"], name="mine")
    model = configure("titans", d_model=8, n_heads=1, deep={"objective": mine})
    config = dataclasses.replace(tiny(), model=model)
    with pytest.raises(InputError, match="objective='mine' must be one of"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
