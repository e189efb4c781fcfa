"""Loss by position and by context, of a model that is not trained."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.study import context_use
from nl_jax import training
from nl_jax.models import build


@pytest.fixture
def untrained(monkeypatch):
    model = build("lstm", d_model=8, n_heads=1, n_layers=1)
    drawn = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), int))
    even = jax.tree.map(jnp.zeros_like, drawn)

    def train(config, *rest, **options):
        return types.SimpleNamespace(
            step=config.steps, model=model, variables=even
        )

    monkeypatch.setattr(training, "train", train)


SMALL = (
    "--documents=2",
    "--positions=512",
    "--length=64",
    "--contexts=256,512",
    "--variants=hope",
)


def test_a_uniform_model_needs_eight_bits_everywhere(
    finished, untrained, text, monkeypatch
):
    out, record = finished(context_use, *SMALL, f"--paths={text}")
    (row,) = record["rows"]
    # Up to 64, 128, 256 and 512; and in windows of 256 and of 512.
    np.testing.assert_allclose(row["by_position"], [8.0] * 4)
    np.testing.assert_allclose(row["by_context"], [8.0] * 2)
    assert "| variant | parameters | 256 | 512 |" in out
    assert "| 0 to 64 | 64 to 128 | 128 to 256 | 256 to 512 |" in out
    monkeypatch.setattr(context_use, "run_one", lambda **_: 1 / 0)
    again = finished(context_use, *SMALL, f"--paths={text}")[1]
    assert again["rows"] == record["rows"]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--contexts=100", "--contexts=100: must divide --positions=512"),
        ("--positions=520", "must be a multiple of --length=64"),
        ("--documents=90", "documents of 512 bytes"),
    ],
)
def test_wrong_flags(refused, text, flag, words):
    refused(context_use, words, *SMALL, f"--paths={text}", flag)


def test_without_paths_the_standard_library_is_read(finished, untrained):
    flags = ("--documents=2", "--positions=512", "--contexts=512")
    _, record = finished(context_use, *flags, "--variants=hope", "--length=512")
    assert record["rows"][0]["by_context"] == [8.0]
