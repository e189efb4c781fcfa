"""Weights of a run in files of other programs, and back into a run."""

import json

import jax
import numpy as np

from experiments.language import export, train_lm
from nl_jax.data import ByteTokenizer
from nl_jax.pretrained import load_pretrained
from nl_jax.training import load_model
from tests.experiments.conftest import SMALL


def test_a_run_is_saved_and_another_begins_with_it(script, workdir, tmp_path):
    out = tmp_path / "model"
    status, printed, errors = script(export, str(workdir), str(out))
    assert status == 0, errors
    found, run = load_pretrained(out), load_model(workdir)
    assert found.model == run.model
    assert isinstance(found.tokenizer(), ByteTokenizer)
    leaves = jax.tree.leaves(run.variables)
    count = sum(leaf.size for leaf in leaves)
    assert printed == f"{out}: {count:,} parameters as nl_jax, float32\n"
    for one, two in zip(jax.tree.leaves(found.variables), leaves, strict=True):
        np.testing.assert_array_equal(one, two)

    tuned = tmp_path / "tuned"
    flags = (*SMALL, "--config.steps=1", "--config.sample.tokens=0")
    status, printed, errors = script(
        train_lm, *flags, f"--workdir={tuned}", f"--init_from={out}"
    )
    assert status == 0, errors
    assert f"began with {len(leaves)} parameters" in printed
    config = json.loads((tuned / "config.json").read_text())
    assert config["init_from"] == str(out)
    for words, *arguments in (
        ("already; give a new folder", str(workdir), str(out)),
        ("must be a folder", str(workdir), str(tuned / "config.json")),
        ("--out is missing", str(workdir)),
        ("nowhere does not exist", str(tmp_path / "nowhere"), "x"),
        ("unexpected argument 'y'", str(workdir), "x", "y"),
        ("only a transformer with levels", str(workdir), "x", "--static"),
        ("step=7", str(out), "x", "--step=7"),
    ):
        status, _, errors = script(export, *arguments)
        assert status == 2 and errors.count("\n") == 1
        assert words in errors
    status, _, errors = script(
        train_lm, *flags, f"--workdir={tmp_path / 'n'}", "--init_from=nowhere"
    )
    assert status == 2 and errors == "error: nowhere does not exist\n"
    assert not (tmp_path / "n").exists()
