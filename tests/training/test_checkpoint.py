"""Checkpoints that are not what was saved, and folders in use."""

import json
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

from nl_jax.errors import DamagedError, InputError
from nl_jax.models import LanguageModel
from nl_jax.training import (
    Checkpoints,
    checkpoint,
    list_steps,
    load_model,
    load_weights,
    make_mesh,
    train,
)
from nl_jax.training.checksums import array_sums
from nl_jax.training.process import locked
from nl_jax.training.step import plan_state
from tests.devices import run_on_devices
from tests.training.test_loop import losses, steps_in


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A run with checkpoints of steps 2, 4 and 6; not to be changed."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    train(tiny(), workdir)
    return workdir


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    return tmp_path / "copy"


def mixed(x):
    """The published finaliser of MurmurHash3, on Python's integers."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)


def sum_by_hand(array):
    """Hashes the words of an array in the order of its elements."""
    size = array.dtype.itemsize
    words = np.frombuffer(array.tobytes(), f"<u{min(size, 4)}")
    first = size * len(words)
    hashed = [
        mixed(int(word) ^ mixed(first + i)) for i, word in enumerate(words)
    ]
    return f"{sum(hashed) % 2**32:08x}"


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "int8", "bool"]
)
def test_sums_of_all_dtypes(dtype):
    values = np.random.default_rng(0).normal(size=(3, 2)) * 9
    array = values.astype(getattr(ml_dtypes, dtype, dtype))
    assert array_sums({"a": array}) == {"a": sum_by_hand(array)}


def off_by_a_quarter(workdir, config, step, part, monkeypatch):
    """Writes a step anew, one number changed but not the checksums."""
    _, shapes = plan_state(
        config, LanguageModel(config.model), make_mesh(config.mesh)
    )
    reader = Checkpoints(workdir)
    meta, state = reader.meta(step), reader.restore(step, shapes)
    reader.close()
    del meta["step"]
    sums = {id(tree): array_sums(tree) for tree in state}
    leaves, tree = jax.tree.flatten(getattr(state, part))
    largest = max(range(len(leaves)), key=lambda i: leaves[i].size)
    flat = leaves[largest].ravel().at[-1].add(0.25)
    leaves[largest] = flat.reshape(leaves[largest].shape)
    changed = state._replace(**{part: jax.tree.unflatten(tree, leaves)})
    shutil.rmtree(workdir / "checkpoints" / str(step))
    old = iter([sums[id(tree)] for tree in state])
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "array_sums", lambda tree: next(old))
        writer = Checkpoints(workdir, every=1)
        writer.save(step, changed, meta)
        writer.wait()
        writer.close()
    return jax.tree_util.keystr(
        jax.tree_util.tree_leaves_with_path(getattr(state, part))[largest][0],
        simple=True,
        separator="/",
    )


@pytest.mark.parametrize("part", ["variables", "optimizer"])
def test_a_number_that_changed_is_found(copy, run, tiny, part, monkeypatch):
    name = off_by_a_quarter(copy, tiny(), 6, part, monkeypatch)
    with pytest.raises(DamagedError) as error:
        train(tiny(), copy)
    assert f"{part}/{name} has another checksum" in str(error.value)
    assert "step 4 is intact: go on with --skip_damaged" in str(error.value)
    if part == "variables":
        with pytest.raises(DamagedError, match=r"intact: go on with --step=4"):
            load_model(copy)
    assert load_model(copy, 4).meta["step"] == 4
    found = {saved.step: saved.problem for saved in list_steps(copy)}
    assert found == {2: "", 4: "", 6: f"{part}/{name} has another checksum"}
    assert train(tiny(), copy, skip_damaged=True).step == 6
    assert losses(copy) == losses(run)
    assert [saved.problem for saved in list_steps(copy)] == [""] * 3
    assert (copy / "damaged" / "6").is_dir()


def edit_metadata(workdir, change):
    """Changes the metadata of step 6."""
    for path in (workdir / "checkpoints" / "6" / "meta").iterdir():
        text = path.read_text()
        if '"versions"' in text:
            meta = json.loads(text)
            change(meta)
            path.write_text(json.dumps(meta))


def test_metadata_that_changed_is_found(copy, tiny):
    """Such as the position in the data, by one digit."""
    edit_metadata(copy, lambda meta: meta["config"].update(seed=1))
    with pytest.raises(DamagedError, match="metadata has another checksum"):
        load_model(copy)
    with pytest.raises(DamagedError, match=r"step 4 is intact"):
        train(tiny(seed=1), copy)


def test_checksums_are_missing_from_the_first_checkpoints_only(copy):
    edit_metadata(copy, lambda meta: meta.update(sumt=meta.pop("sums")))
    reason = "its metadata has 'sumt', an unknown entry"
    assert [saved.problem for saved in list_steps(copy)] == ["", "", reason]
    with pytest.raises(DamagedError, match=reason):
        load_model(copy)
    edit_metadata(copy, lambda meta: meta.pop("sumt"))
    assert "not verified" in list_steps(copy)[-1].problem
    assert load_model(copy).meta["step"] == 6
    for name in ("config", "tokenizer", "data"):
        kept = {}

        def spoil(meta, name=name, kept=kept):
            kept[name] = meta[name]
            meta[name] = [1]

        edit_metadata(copy, spoil)
        with pytest.raises(DamagedError, match=f"entry '{name}' of its"):
            load_model(copy)
        edit_metadata(copy, lambda meta, kept=kept: meta.update(kept))
    edit_metadata(copy, lambda meta: meta["config"]["model"].update(cms=5))
    with pytest.raises(InputError, match="holds a model of another version"):
        load_model(copy)


def test_weights_are_left_if_only_the_optimizer_is_damaged(copy, tiny):
    for step in (2, 4, 6):
        shutil.rmtree(copy / "checkpoints" / str(step) / "optimizer" / "d")
    words = "its variables and optimizer cannot be read); start again in "
    with pytest.raises(DamagedError) as error:
        train(tiny(), copy)
    assert words in str(error.value)
    remedy = f"of step 6, which are intact: --init_from={copy}"
    assert str(error.value).endswith(remedy)
    assert load_weights(copy).model.config == tiny().model
    shutil.rmtree(copy / "checkpoints" / "6" / "variables" / "d")
    with pytest.raises(DamagedError, match=r"step 4, which are intact: --init"):
        train(tiny(), copy)
    with pytest.raises(InputError, match=r"step 4, .*export --step=4, and"):
        train(tiny(init_from=str(copy)))


def test_nothing_is_set_aside_if_nothing_is_intact(copy, tiny):
    for step in (2, 4, 6):
        shutil.rmtree(copy / "checkpoints" / str(step) / "variables" / "d")
    with pytest.raises(DamagedError, match=r"again in another --workdir$"):
        train(tiny(), copy, skip_damaged=True)
    assert steps_in(copy) == [2, 4, 6]


def test_a_step_that_is_not_there_lists_the_others(run):
    with pytest.raises(InputError, match=r"step=5: .* the steps 2, 4, 6"):
        load_model(run, 5)


def test_a_folder_is_for_one_process(copy, tiny):
    """Until that ends, in whatever way."""
    hold = (
        "import pathlib, sys\n"
        "from nl_jax.training.process import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold, copy],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout.readline() == b"held\n"
    before = (copy / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match=rf"in use by process {other.pid} on"):
        train(tiny(), copy)
    assert (copy / "metrics.jsonl").read_bytes() == before
    assert load_model(copy).meta["step"] == 6  # Reading needs no lock.
    other.kill()
    other.communicate()
    assert train(tiny(), copy).step == 6
    with locked(copy), pytest.raises(InputError, match="is in use by"):
        train(tiny(), copy)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.jsonl", '{"loss": 1.0}\n'),
        ("config.json", '{"architectures": ["LlamaForCausalLM"]}'),
        ("config.json", "[]"),
    ],
)
def test_a_foreign_folder_stays_as_it_is(tiny, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=name):
        train(tiny(), tmp_path)
    assert (tmp_path / name).read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(InputError, match="is a file"):
        train(tiny(), tmp_path / name)


def test_some_checkpoints_are_kept_for_good(tiny, tmp_path):
    train(tiny(keep_checkpoints=1, keep_every=4), tmp_path)
    assert steps_in(tmp_path) == [4, 6]


def test_a_save_that_only_began_does_not_count(copy, run, tiny):
    """As a kill leaves it: all may be there, but not under its name."""
    checkpoints = copy / "checkpoints"
    (checkpoints / "6").rename(checkpoints / "6.orbax-checkpoint-tmp")
    assert load_model(copy).meta["step"] == 4
    assert [saved.step for saved in list_steps(copy)] == [2, 4]
    train(tiny(), copy)
    assert losses(copy) == losses(run)
    assert steps_in(copy) == [2, 4, 6]  # It has gone.


def test_a_step_that_hangs_shows_its_stacks(tmp_path):
    code = (
        "import time\n"
        "from nl_jax.training.process import StopSignal\n"
        "with StopSignal(0.2) as stop:\n"
        "    stop.agree()\n"
        "    time.sleep(1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "Timeout" in done.stderr
    assert "line 5 in <module>" in done.stderr


MANY_SUMS = """
import jax, numpy as np
from nl_jax.training import MeshConfig, make_mesh
from nl_jax.training.checksums import array_sums
mesh = make_mesh(MeshConfig(2, 2, 2))
where = jax.NamedSharding(mesh, jax.P(None, "fsdp", "tensor"))
tree = {i: np.full((64, 32, 8), i, np.float32) for i in range(200)}
cut = jax.device_put(tree, where)
expected = array_sums(tree)
for _ in range(5):
    assert array_sums(cut) == expected
"""


@pytest.mark.slow
def test_sums_of_many_sharded_arrays_do_not_wait_for_each_other():
    """Two at a time take each other's threads, and wait for ever."""
    run_on_devices(MANY_SUMS)
