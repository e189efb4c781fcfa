"""Long contexts: sizes, windows alone, how variants are trained, the report."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.study import long_context
from experiments.study.long_context import VARIANTS, model_of
from experiments.study.variants import state_bytes
from experiments.study.windows_alone import ALONE, alone
from nl_jax import training
from nl_jax.models import build
from nl_jax.nested.level_table import count_parameters

SHAPE = {"model": "hope", "width": 64, "layers": 2, "heads": 2}


@pytest.mark.parametrize(
    "name", ["hope-next-token", "hope-local", "hope-adaptive", "transformer"]
)
def test_variants_have_equal_sizes(name):
    size, own = (
        count_parameters(build(model_of(n, SHAPE)).parameter_shapes())
        for n in ("hope", name)
    )
    assert abs(own / size - 1) < 0.005


def test_a_wide_window_has_the_bytes_of_levels_that_learn():
    wide, levels, narrow = (
        state_bytes(model_of(name, SHAPE))
        for name in ("transformer-wide", "hope-next-token", "transformer")
    )
    assert abs(wide - levels) <= 2 * 2 * 64 * 4 and narrow < levels / 2


def test_attention_has_as_many_bytes_as_the_memories():
    # A token is a key and a value of 64 numbers of 4 bytes in each of 2 blocks;
    # tails of 3 tokens (of a stream of 192 channels, q and k; of q, k and v),
    # the positions and counts are all that is left.
    window = model_of("transformer", SHAPE).attention.window
    # Of eta, alpha and the answers, one head: weights, momenta and starts.
    matrices = 3 * 2 * 3 * 64 * 64 * 4
    tails = 2 * 3 * (192 + 2 * 64) * 4
    found = window * 2 * 2 * 64 * 4 + 2 * 3 * 3 * 64 * 4
    assert abs(found - (matrices + tails)) <= 2 * 2 * 64 * 4


def test_windows_alone_begin_from_nothing():
    model = build("titans", d_model=16, n_heads=2, n_layers=1)
    documents = np.arange(2 * 128).reshape(2, 128) % 251
    variables = jax.jit(model.init)(jax.random.key(1), documents)

    def bits(tokens, targets):
        logits, _ = jax.jit(model.apply)(variables, tokens)
        log_p = jax.nn.log_softmax(logits)
        own = jnp.take_along_axis(log_p, targets[..., None], -1)
        return -own[..., 0] / jnp.log(2)

    first = bits(documents[:, :64], documents[:, 1:65])
    second = bits(documents[:, 64:], np.roll(documents, -1, 1)[:, 64:])
    # The first loss of the second window is that of token 65.
    second = jnp.concatenate([first[:, -1:], second[:, :-1]], 1)
    expected = np.stack([first[:, :-1].mean(1), second.mean(1)], 1)
    found = alone(model, variables, documents, [0, 64, 128], 64)
    np.testing.assert_allclose(found, expected, atol=1e-4)


SMALL = ("--documents=2", "--least=1000", "--positions=512", "--length=64")


def test_rows_go_on_in_carried_variants_only(
    finished, monkeypatch, text, tmp_path
):
    given = []

    def train(config, workdir):
        given.append(config)
        model = build("lstm", d_model=8, n_heads=1, n_layers=1)
        key, ids = jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
        return types.SimpleNamespace(
            step=config.steps,
            held_out_bits_per_byte=2.5,
            model=model,
            variables=jax.jit(model.init)(key, ids),
            train_seconds=1.0,
        )

    monkeypatch.setattr(training, "train", train)
    flags = ("--variants=hope,hope-carried", "--seeds=0", f"--paths={text}")
    out, _ = finished(long_context, *SMALL, *flags)
    assert [c.data.reading for c in given] == ["windows", "contiguous"]
    assert given[1].data.carry_windows == 32
    assert all(VARIANTS[n].carried for n in ("hope-local", "hope-next-token"))
    # The two have the same parameters here.
    zeros = " | ".join(["0.000 ± 0.000"] * 4)
    assert f"| hope than hope-carried | {zeros} |" in out


def cell(by_position):
    return {
        "bits_per_byte": 2.0,
        "parameters": 10,
        "state_bytes": 20,
        "by_position": by_position,
    }


def test_differences_are_paired_over_documents(
    finished, monkeypatch, text, tmp_path
):
    found = {
        "hope-carried": {
            "": [[3.0, 2.0], [4.0, 2.5]],
            ALONE: [[3.0, 2.5], [4.0, 4.0]],
            "memory": [[3.0, 3.0], [4.0, 3.0]],
        },
        "transformer": {"": [[3.5, 3.0], [4.5, 3.0]], ALONE: [[0, 0], [0, 0]]},
    }

    def run(variant, rate, seed, **_):
        return cell(found[variant])

    monkeypatch.setattr(long_context, "run_one", run)
    flags = ("--variants=hope-carried,transformer", "--seeds=0,1")
    small = ("--documents=2", "--least=1", "--positions=512", "--length=256")
    out, _ = finished(long_context, *small, *flags, f"--paths={text}")
    # By hand: gains 1.0 and 1.5, worth 0.5 and 1.5, frozen 1.0 and 0.5, and
    # 1.0 and 0.5 better than the transformer; half of the distance each.
    assert "| hope-carried | 0.000 ± 0.000 | 1.250 ± 0.250 |" in out
    assert "| hope-carried | 0.000 ± 0.000 | 1.000 ± 0.500 |" in out
    assert "| hope-carried, memory | 0.000 ± 0.000 | 0.750 ± 0.250 |" in out
    line = "| transformer than hope-carried | 0.500 ± 0.000 | 0.750 ± 0.250 |"
    assert line in out


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--variants=best", "allowed are hope, "),
        ("--paths=", "--paths is missing"),
        ("--positions=1000", "must be a multiple of --length=64"),
        ("--width=65", "must be a multiple of --heads=2"),
        ("--documents=3", "has 2 documents of 1000 bytes"),
    ],
)
def test_wrong_flags_are_one_line(refused, text, flag, words):
    refused(long_context, words, *SMALL, f"--paths={text}", flag)
