"""Learning against attending: a small model, what is written and refused."""

import json

import numpy as np
import pytest

from experiments.shared.records import read_cells
from experiments.streams import documents, stack_levels
from nl_jax.data import BPETokenizer
from tests.continual import pretrained_files as files

TEXT = "the same few words, over and over; "


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random Llama of 260 tokens, which has everything to learn."""
    config = files.LLAMA | {
        "vocab_size": 260,
        "max_position_embeddings": 64,
        "num_hidden_layers": 2,
    }
    folder = tmp_path_factory.mktemp("model") / "m"
    files.write(folder, config, files.llama_weights(config))
    found = BPETokenizer.train(TEXT.encode(), 260).to_json()["model"]
    level = found["pre_tokenizer"]
    tokenizer = found | {"decoder": level}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture
def flags(model, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"{number}: " + TEXT * 10)
    (folder / "short.txt").write_text("too short")
    return [
        f"--model={model}",
        f"--documents={folder}",
        f"--out={tmp_path / 'out'}",
        "--tokens=32",
        "--periods=4,8",
        "--layers=2",
        "--rates=1e-3,1e-2",
        "--tuning=1",
        "--count=3",
    ]


def test_the_script_measures_judges_and_goes_on(script, flags, tmp_path):
    status, out, _ = script(stack_levels, *flags)
    record = json.loads((tmp_path / "out" / "stack_levels.json").read_text())
    assert (status == 0) == (record["interval"][1] < 0)
    assert len(record["documents"]) == 3
    assert record["difference"] == pytest.approx(record["on"] - record["off"])
    assert record["difference"] < 0  # Such a text is easily learned.
    assert record["rate"] in (1e-3, 1e-2)
    assert "| 95 % interval |" in out and "Better on 3 of 3" in out
    assert (tmp_path / "out" / "stack_levels.png").stat().st_size
    runs = tmp_path / "out" / "stack_levels"
    cells = read_cells(runs)
    assert len(cells) == 3 + 2 * 3  # Three rates on one, then two on three.
    max(runs.iterdir(), key=lambda path: path.stat().st_mtime_ns).unlink()
    assert read_cells(runs) == cells[:-1]  # As if killed in the last run.
    again, out, _ = script(stack_levels, *flags)
    assert again == status and out.count(" rate ") == 1 + 1
    last = read_cells(runs)[-1]
    assert last["result"] == cells[-1]["result"]
    assert last["cell"] == cells[-1]["cell"]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--tokens=33", "--tokens=33: must be even"),
        ("--tokens=200", "window"),
        ("--rates=fast", "--rates=fast: must be positive"),
        ("--periods=4,x", "--periods=4,x"),
        ("--periods=3,4", "each must divide the next"),
        ("--layers=3", "cms.layers=3"),
        ("--count=9", "has 4 of 32 tokens; --tuning and --count need 10"),
        ("--documents=nowhere", "--documents=nowhere: no texts there"),
        ("--model=nowhere", "nowhere does not exist"),
    ],
)
def test_wrong_flags_are_one_line(script, flags, tmp_path, flag, words):
    status, _, err = script(stack_levels, *flags, flag)
    assert status == 2
    assert err.startswith("error: ") and err.count("\n") == 1
    assert words in err
    assert not (tmp_path / "out").exists()


def test_the_interval_is_that_of_a_mean():
    rng = np.random.default_rng(0)
    values = rng.normal(3, 1, 400)
    low, high = stack_levels.interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.1)


@pytest.mark.parametrize("kind", ["modules", "topics"])
def test_default_documents_are_many_and_long(kind):
    texts = documents.read_documents(kind)
    assert sum(len(text) > 4096 for text in texts.values()) > 20
    assert all(name.startswith(f"{kind}/") for name in texts)
