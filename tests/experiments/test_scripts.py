"""Each script from its command line: what it prints, writes and refuses."""

import json
import logging
import os
import shutil
import signal
import sys
import types

import jax
import pytest

from experiments.corpora import prepare_text
from experiments.language import evaluate, generate, quotations, train_lm
from experiments.streams import stream_stability
from nl_jax.data import DataConfig, open_prepared
from nl_jax.training import freeze
from tests.experiments.conftest import SMALL
from tests.experiments.test_prepare_text import share_of


def test_training_writes_its_files(workdir):
    results = json.loads((workdir / "results.json").read_text())
    assert results["step"] == 4
    assert {"config", "seed", "versions", "git_revision"} <= results.keys()
    assert {"train_step", "eval_step"} == results["compile_seconds"].keys()
    assert results["held_out_bits_per_byte"] > 0
    for name in ("config.json", "metrics.jsonl", "loss.png", "sample.txt"):
        assert (workdir / name).stat().st_size


def test_training_prints_levels_and_results(script, workdir):
    status, out, _ = script(train_lm, *SMALL, f"--workdir={workdir}")
    assert status == 0
    for words in (
        "cms.level_1",
        "going on from step 4",
        "bits per byte in windows of 16 tokens; gzip on the same bytes",
        "sample: The ",
    ):
        assert words in out


@pytest.mark.slow
def test_a_restart_compiles_nothing(script, tmp_path, cache_hits):
    """Programs lie beside the folders of runs, and serve other runs too."""
    flags = (*SMALL, "--config.sample.tokens=0")
    assert script(train_lm, *flags, f"--workdir={tmp_path / 'a'}")[0] == 0
    folder = tmp_path / "compilation_cache"
    kept = sorted(path.name for path in folder.iterdir())
    steps = [name for name in kept if name.startswith("jit_step-")]
    assert len(steps) == 1 and not cache_hits
    shutil.rmtree(tmp_path / "a" / "checkpoints" / "4")
    for run in "ab":
        cache_hits.clear()
        jax.clear_caches()
        assert script(train_lm, *flags, f"--workdir={tmp_path / run}")[0] == 0
        assert len(cache_hits) > 3
        assert steps == [p.name for p in folder.glob("jit_step-*")]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.foo=1", "no field foo"),
        ("--config.model.dmodel=1", "dmodel Did you mean"),
        ("--config.steps=many", "config.steps=many"),
        ("--config.steps=0", "steps=0"),
        ("--config=nowhere.py", "nowhere.py"),
        ("--config.model.name=gpt9", "'gpt9' does not exist"),
        ("--config.data.paths=('nowhere.txt',)", "nowhere.txt' does not exist"),
        ("--config.data.held_out_paths=none", "held_out_paths: 'none' does"),
        ("--config.data.tokenizer=none.json", "read the tokenizer none.json"),
        ("--config.seed=-1", "seed=-1 must be an integer >= 0"),
        ("--config.optimizer.name=lion", "must be one of 'sgd', 'adamw', "),
        ("--config.mesh.data=3", "must multiply to the 1 devices"),
        ("--wokdir=a", "wokdir"),
        ("--workdir=", "--workdir is empty"),
        ("--writers=mlflow", "allowed are tensorboard, wandb, trackio"),
        ("--config.sample.top_p=2", "sample.top_p=2.0 must be in (0, 1]"),
        ("--config.seed=-1", "seed=-1 must be an integer >= 0"),
        ("--workdir=ftp://a/b", "--workdir=ftp://a/b has an unknown scheme"),
        ("--workdir=gs:/a/b", "gs:/a/b must have two slashes after its scheme"),
        ("--config.mesh.compute_axes.batch=fsdp,fsdp", "each once, with comma"),
        ("--process_id=0", "--coordinator_address is missing; "),
        ("--profile=5", "--profile='5' must be START:STEPS"),
        ("--profile=5:1", "must begin with one of the steps 1 to 4"),
        ("workdir", "unexpected argument 'workdir'"),
    ],
)
def test_wrong_flags_are_one_line(script, tmp_path, flag, words):
    status, _, err = script(
        train_lm, *SMALL, f"--workdir={tmp_path / 'new'}", flag
    )
    assert status == 2
    assert err.startswith("error: ") and err.count("\n") == 1
    assert words in err
    assert not (tmp_path / "new" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["/a/books,/a/code.jsonl"], ("/a/books", "/a/code.jsonl")),
        (["./books,./code.jsonl"], ("./books", "./code.jsonl")),
        (["my-2.txt, a_b.jsonl"], ("my-2.txt", "a_b.jsonl")),
        (["2024,1e5"], ("2024", "1e5")),
        (["2024"], ("2024",)),
        (["None"], ("None",)),
        (["('a','b')"], ("a", "b")),
        (["'a b'"], ("a b",)),
        (["a", "b-1,c", "('d',)"], ("a", "b-1", "c", "d")),
        (["b,1", "a"], ("b,1", "a")),  # There is a file of this name.
        (["a.txt,"], "error: data.{}='a.txt,' has an empty path"),
    ],
)
def test_paths_are_flags(script, monkeypatch, tmp_path, given, found):
    (tmp_path / "b,1").write_text("text")
    small = os.path.abspath(SMALL[0].partition("=")[2])
    monkeypatch.chdir(tmp_path)
    data: list[DataConfig] = []
    read = types.SimpleNamespace(
        FLAGS=train_lm.FLAGS,
        main=lambda values: data.append(freeze(values.config).data),
    )
    for name in ("paths", "held_out_paths"):
        field = f"--config.data.{name}"
        for flags in (
            [f"{field}={value}" for value in given],
            [f"--config={small}", *(w for v in given for w in (field, v))],
        ):
            status, _, error = script(read, *flags)
            if isinstance(found, str):
                assert status == 2 and error == found.format(name) + "\n"
            else:
                assert status == 0, error
                assert getattr(data[-1], name) == found


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("hello there", "it is not Python: invalid syntax (own.py, line 1)"),
        ("import nowhere", "own.py, line 1: ModuleNotFoundError: No module"),
        ("x = 1", "it has no function get_config"),
        ("def get_config():\n  {}['k']", "own.py, line 2: KeyError: 'k'"),
        ("def get_config():\n  int('k')", "own.py, line 2: ValueError: inv"),
        ("def get_config():\n  1 / 0", "own.py, line 2: ZeroDivisionError: "),
        ("def get_config():\n  return 5", "get_config of --config must return"),
    ],
)
def test_a_wrong_configuration_file_is_one_line(
    script, monkeypatch, tmp_path, code, words
):
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    (tmp_path / "own.py").write_text(code)
    new = tmp_path / "new"
    status, _, err = script(
        train_lm, f"--config={tmp_path / 'own.py'}", f"--workdir={new}"
    )
    assert status == 2 and err.count("\n") == 1 and not new.exists()
    assert err.startswith("error: ") and words in err


def test_a_reader_that_stops_ends_a_script_quietly(script, monkeypatch):
    def main(values):
        for i in range(3):  # Log lines are let go, and the run goes on.
            logging.getLogger("nl_jax").info(f"line {i}")
        done.append(True)
        os.dup2(pipe, out.fileno())
        out.write("found")

    done: list[bool] = []
    reader, pipe = os.pipe()
    os.close(reader)
    with open(os.dup(pipe), "w") as out:
        monkeypatch.setattr("sys.stdout", out)
        status, _, err = script(types.SimpleNamespace(FLAGS={}, main=main))
    os.close(pipe)
    assert (status, err, done) == (128 + signal.SIGPIPE, "", [True])


def test_too_little_memory_is_one_line(script):
    def main(values):
        message = "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"
        raise jax.errors.JaxRuntimeError(message)

    module = types.SimpleNamespace(FLAGS={}, main=main)
    status, _, err = script(module)
    assert status == 2 and err.count("\n") == 1
    assert "make the model, batch_size or seq_len smaller" in err


def test_checkpoints_are_listed(script, workdir):
    for module in (train_lm, generate, evaluate):
        status, out, _ = script(module, f"--workdir={workdir}", "--list_steps")
        assert status == 0
        head, _, *rows = out.splitlines()
        assert head == "| step | saved | size | state |"
        assert [row.split(" | ")[0] for row in rows] == ["| 2", "| 4"]
        assert all(row.endswith(" MB | intact |") for row in rows)


def test_another_config_in_the_workdir_is_one_line(script, workdir):
    before = (workdir / "metrics.jsonl").read_bytes()
    status, _, err = script(
        train_lm, *SMALL, f"--workdir={workdir}", "--config.seed=1"
    )
    assert status == 2 and "seed=0" in err and "seed=1" in err
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_help(script):
    status, out, _ = script(train_lm, "--help")
    assert status == 0 and "--workdir" in out and "metrics.jsonl" in out


def test_generating_in_two_halves(script, workdir, tmp_path):
    here = f"--workdir={workdir}"
    _, whole, _ = script(generate, here, "--prompt=ab", "--tokens=12")
    state = tmp_path / "state"
    _, first, _ = script(
        generate, here, "--prompt=ab", "--tokens=5", f"--save_state={state}"
    )
    status, second, _ = script(
        generate, here, "--tokens=7", f"--load_state={state}"
    )
    assert status == 0 and whole.startswith("ab")
    # Bytes that end inside a character are printed differently at a cut.
    if "\ufffd" not in whole:
        assert first[:-1] + second == whole
    _, again, _ = script(generate, here, "--prompt=ab", "--tokens=12")
    assert again == whole


def test_bpe_tokens_from_training_to_evaluation(script, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"naïve words and {i} more\n" for i in range(300)))
    here = f"--workdir={tmp_path / 'run'}"
    data = (f"--config.data.paths={text}", "--config.data.tokenizer=bpe")
    flags = (*SMALL, here, *data, "--config.data.bpe_vocab_size=300")
    assert script(train_lm, *flags, "--config.steps=2")[0] == 0
    more = "--config.accept_new_config=True"
    status, out, _ = script(train_lm, *flags, "--config.steps=4", more)
    assert status == 0 and "going on from step 2" in out
    prompt, state = "--prompt=naïve", tmp_path / "state"
    status, whole, _ = script(generate, here, prompt, "--tokens=6")
    assert status == 0 and whole.startswith("naïve")
    script(generate, here, prompt, "--tokens=2", f"--save_state={state}")
    status, rest, error = script(
        generate, here, "--tokens=4", f"--load_state={state}"
    )
    assert status == 0, error
    if "\ufffd" not in whole:
        assert whole.endswith(rest)
    status, out, error = script(
        evaluate, here, f"--file={text}", f"--out={tmp_path}"
    )
    assert status == 0, error
    found = json.loads((tmp_path / "evaluation.json").read_text())
    # All but the first token are predicted; it is "n" or longer.
    missing = text.stat().st_size - sum(
        r["bytes"] for r in found["by_position"]
    )
    assert 1 <= missing <= len("naïve".encode())
    assert found["tokens"] < text.stat().st_size / 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prompt="], "--prompt is empty"),
        (["--top_p=0"], "top_p=0.0 must be in"),
        (["--temperature=-1"], "temperature"),
        (["--load_state=nowhere"], "does not exist"),
        (["--step=77"], "step=77: "),
        (["--step=77"], "has checkpoints of the steps 2, 4"),
        (["--step=0"], "step"),
        (
            ["--seed=4294967296"],
            "is not an integer in the range [0, 4",
        ),
        (["--temperature=nan"], "temperature"),
        (["--workdir=nowhere"], "holds no checkpoint"),
    ],
)
def test_generating_refuses(script, workdir, flags, words):
    status, _, err = script(generate, f"--workdir={workdir}", *flags)
    assert status == 2 and err.count("\n") == 1 and words in err


def test_evaluating_a_file(script, workdir, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("some words and then some more\n" * 20)
    status, out, _ = script(
        evaluate,
        f"--workdir={workdir}",
        f"--file={text}",
        f"--out={tmp_path}",
        "--chunk=64",
    )
    assert status == 0 and "| 256 |" in out
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["tokens"] == 599
    assert sum(row["bytes"] for row in found["by_position"]) == 599
    assert (tmp_path / "evaluation.png").stat().st_size
    for flags, words in (
        (["--context=file"], "--context=file: value should be one of"),
        ([f"--file={tmp_path / 'none'}", "--context=window"], "does not exist"),
        ([f"--file={tmp_path / 'none'}"], "is not a file"),
        ([f"--out={text}"], f"--out={text}: must be a folder"),
        ([f"--out={text}/new"], "must be a folder"),
        (["--out="], "must be a folder"),
    ):
        status, _, err = script(evaluate, f"--workdir={workdir}", *flags)
        assert status == 2 and words in err


def test_each_context_is_evaluated_and_named(script, workdir, tmp_path):
    """Without a file the window's figure is that of training."""
    words = [
        json.dumps({"text": "some words " * n, "asked": "a prompt "})
        for n in (1, 9)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(words))
    for flags, name, tokens in (
        (["--context=window"], "the held-out text, context window", None),
        ([f"--file={tmp_path}"], "context stream", 109),
        ([f"--file={tmp_path}", "--context=document"], "context document", 108),
        ([f"--file={tmp_path}/a.jsonl", "--context=window"], "window", 108),
        ([f"--file={tmp_path}", "--prompt_field=asked"], "stream", 110),
    ):
        status, out, error = script(
            evaluate, f"--workdir={workdir}", *flags, f"--out={tmp_path}/.out"
        )
        assert status == 0, error
        found = json.loads((tmp_path / ".out" / "evaluation.json").read_text())
        assert f"{name}: {found['bits_per_byte']:.3f} bits per byte" in out
        assert tokens in (None, found["tokens"])
        if tokens is None:
            results = json.loads((workdir / "results.json").read_text())
            trained = results["held_out_bits_per_byte"]
            assert found["bits_per_byte"] == pytest.approx(trained, rel=1e-6)

    status, _, error = script(
        evaluate,
        f"--workdir={workdir}",
        f"--file={tmp_path}",
        "--text_field=none",
    )
    assert status == 2 and "name the field with --text_field" in error


def test_a_prepared_corpus_is_evaluated_on_what_it_holds_out(
    script, workdir, tmp_path
):
    texts = [json.dumps({"text": f"document {i}"}) for i in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(texts))
    for name, *flags in (["bytes"], ["bpe", "--tokenizer=bpe"]):
        status, _, error = script(
            prepare_text,
            f"--input={tmp_path}/a.jsonl",
            f"--output={tmp_path / name}",
            "--held_out=0.3",
            "--processes=1",
            *flags,
        )
        assert status == 0, error
    here = (f"--workdir={workdir}", f"--out={tmp_path}", "--context=document")
    status, _, error = script(evaluate, *here, f"--file={tmp_path}/bytes")
    assert status == 0, error
    lengths = open_prepared(tmp_path / "bytes").held_out.lengths
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["tokens"] == (lengths - 1).sum() > 0
    manifest = tmp_path / "bytes" / "manifest.json"
    status, out, error = script(evaluate, *here, f"--file={manifest}")
    assert status == 0 and f"{found['tokens']} tokens," in out, error
    status, _, error = script(evaluate, *here, f"--file={tmp_path}/bpe")
    assert status == 2 and "was prepared with another tokenizer" in error
    (tmp_path / "bytes" / "held_out-00000-of-00001.index.npy").unlink()
    status, _, error = script(evaluate, *here, f"--file={manifest}")
    assert status == 2 and error.startswith("error: --file: ")
    manifest.unlink()
    status, _, error = script(evaluate, *here, f"--file={tmp_path}/bytes")
    assert status == 2 and error.startswith("error: --file: ")


def test_quotations_of_a_prepared_corpus_are_counted(script, tmp_path):
    texts = [f"document {i:02}" for i in range(40)]
    lines = "\n".join(json.dumps({"text": text}) for text in texts)
    (tmp_path / "a.jsonl").write_text(lines)
    flags = (f"--input={tmp_path}/a.jsonl", f"--output={tmp_path}/corpus")
    script(prepare_text, *flags, "--held_out=0.3", "--processes=1")
    held_out = {text for text in texts if share_of(text) < 0.3}
    status, out, error = script(
        quotations, f"--config.data.paths={tmp_path}/corpus", "--length=9"
    )
    assert status == 0, error
    size = 12 * len(held_out) - 1
    assert f"({size:,} and {40 * 12 - size - 2:,} bytes)" in out


def test_quotations_are_counted_and_printed(script, tmp_path):
    """10 of the 11 last bytes are a quotation, in 3 of 4 windows of 8."""
    (tmp_path / "train.txt").write_text("one two three four five six")
    (tmp_path / "held_out.txt").write_text("two three ?")
    flags = (
        f"--config.data.paths={tmp_path / 'train.txt'}",
        f"--config.data.held_out_paths={tmp_path / 'held_out.txt'}",
    )
    status, out, _ = script(quotations, *flags, "--length=8")
    assert status == 0
    assert out == (
        "75.0% of the held-out windows of 8 bytes occur in the training text "
        "(11 and 27 bytes)\n10 bytes: two three\n"
    )
    status, _, err = script(quotations, *flags)
    assert status == 2 and "has 11 bytes, fewer than --length=40" in err


def test_a_stream_stays_bounded(script, workdir, tmp_path):
    status, out, _ = script(
        stream_stability,
        f"--workdir={workdir}",
        f"--out={tmp_path}",
        "--tokens=4000",
        "--chunk=64",
    )
    assert status == 0 and "memory constant, norms bounded" in out
    rows = json.loads((tmp_path / "stability.json").read_text())["rows"]
    assert len(rows) >= 20
    status, out, _ = script(
        stream_stability,
        f"--workdir={workdir}",
        f"--out={tmp_path}",
        "--tokens=4000",
        "--chunk=64",
        "--memory_limit=-1000000",
    )
    assert status == 1 and "memory grew" in out


def test_a_damaged_checkpoint_is_one_line(script, workdir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "checkpoints" / "4" / "variables" / "d")
    status, _, err = script(generate, f"--workdir={copy}")
    assert status == 2 and "damaged" in err and err.count("\n") == 1
