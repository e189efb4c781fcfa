"""The kernels' benchmark: what it checks, times, refuses and writes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.kernels import (
    benchmark_kernels,
    cases,
    tables,
    timing,
)
from experiments.kernels import (
    case as one_case,
)
from experiments.kernels import (
    peers as libraries,
)
from pallas_kernels.delta_memory.shapes import Shape

SMALL = ("--rounds=2", "--calls=2")


@pytest.fixture
def small(monkeypatch):
    """The only case: a few tokens, one implementation."""
    shape = Shape(1, 2, 12, 4, False, "after", jnp.float32)
    case = cases.delta_case("small", shape)
    case = case._replace(implementations=("chunked",))
    monkeypatch.setitem(cases.CASES, "delta_memory", lambda size: [case])
    return case


def read(folder):
    record = json.loads((folder / "benchmark_kernels.json").read_text())
    rows = record["rows"]
    text = (folder / "benchmark_kernels.md").read_text()
    return {row["implementation"]: row for row in rows}, text


def test_without_an_accelerator_kernels_are_checked(script, tmp_path):
    status, out, err = script(
        benchmark_kernels,
        "--ops=newton_schulz",
        "--shapes=tiny",
        f"--out={tmp_path}",
        *SMALL,
    )
    assert status == 0, err
    rows, text = read(tmp_path)
    assert rows["batched"]["seconds"] > 0 and rows["batched"]["floor"] > 0
    assert rows["batched"]["ratios"] == {"batched": 1}
    for name in ("pallas_tpu", "pallas_triton"):
        assert "seconds" not in rows[name] and rows[name]["error"] < 1e-4
        assert "right in interpret mode" in rows[name]["reason"]
    assert text in out and "No GPU or TPU here" in text
    assert "jax " in text and "ceilings: a copy" in text
    assert (
        "pallas_triton forward | batched | not measured | 1.5 | 3.0 |" in text
    )


def test_real_shapes_need_an_accelerator(script, tmp_path, small, monkeypatch):
    forward = [small._replace(programs=("forward",))]
    monkeypatch.setitem(cases.CASES, "delta_memory", lambda size: forward)
    flags = ("--ops=delta_memory", f"--out={tmp_path}", *SMALL)
    status, _, err = script(benchmark_kernels, *flags)
    assert status == 0, err
    rows, text = read(tmp_path)
    assert not any("seconds" in row for row in rows.values())
    assert rows["chunked"]["error"] < 1e-5
    assert "only with --shapes=tiny: delta_memory small forward" in text
    assert "there is no GPU here: delta_memory small forward fla" in text
    assert "ceilings" not in text


def test_what_is_wrong_is_not_timed(script, tmp_path, small, monkeypatch):
    def twice(arrays, implementation, interpret=False):
        o, *states = small.run(arrays, implementation, interpret)
        return (o * (2 if implementation == "chunked" else 1), *states)

    wrong = small._replace(run=twice, programs=("forward",))
    monkeypatch.setitem(cases.CASES, "delta_memory", lambda size: [wrong])
    flags = ("--shapes=tiny", "--ops=delta_memory", f"--out={tmp_path}")
    status, _, err = script(benchmark_kernels, *flags, *SMALL)
    assert status == 0, err
    row = read(tmp_path)[0]["chunked"]
    assert "seconds" not in row
    assert row["reason"] == "it is wrong, by 1 where 0.03 is allowed"


class Peer:
    """Another library, as right as our truth times ``factor``."""

    def __init__(self, case, factor, program):
        run = libraries.truth(case)
        gradients = program != "forward"
        run = one_case.with_gradients(run) if gradients else run
        self.function = lambda theirs: jax.tree.map(
            lambda v: factor * v, run(theirs)
        )

    def results(self, theirs):
        return jax.jit(self.function)(theirs)

    def timed(self, sets, calls):
        return timing.chained(self.function, sets, calls)


@pytest.mark.parametrize("factor", [1, 1.5])
def test_another_library_is_checked_and_compared_with(
    script, tmp_path, small, monkeypatch, factor
):
    monkeypatch.setattr(benchmark_kernels, "here", lambda: "cuda")
    monkeypatch.setattr(libraries, "why_not", lambda name, case: None)
    peers = {"fla": lambda program: Peer(small, factor, program)}
    monkeypatch.setattr(libraries, "PEERS", peers)
    monkeypatch.setattr(
        benchmark_kernels, "ceilings", lambda *_: {"bytes": 1e9, "flops": 1e9}
    )
    flags = ("--ops=delta_memory", f"--out={tmp_path}", *SMALL)
    status, _, err = script(benchmark_kernels, *flags)
    assert status == 0, err
    rows, _ = read(tmp_path)
    if factor == 1:
        ours, theirs = rows["chunked"]["seconds"], rows["fla"]["seconds"]
        assert rows["chunked"]["ratios"]["fla"] == pytest.approx(theirs / ours)
    else:
        assert "it is wrong, by 0.5" in rows["fla"]["reason"]
        assert "fla" not in rows["chunked"]["ratios"]


def test_other_libraries_compute_the_gated_delta_rule(small):
    arrays = small.draw(jax.random.key(0))
    theirs = libraries.to_theirs(arrays)
    q, k, v, log_alpha, beta = (np.asarray(a, "float64") for a in theirs)
    expected = np.zeros(v.shape)
    for row, head in np.ndindex(q.shape[0], q.shape[2]):
        state = np.zeros((k.shape[-1], v.shape[-1]))
        for t in range(q.shape[1]):
            at = row, t, head
            state *= np.exp(log_alpha[at])
            error = v[at] - k[at] @ state
            state += beta[at] * np.outer(k[at], error)
            expected[at] = q[at] @ state
    ours = np.swapaxes(small.truth(arrays)[0], 1, 2)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    found = libraries.truth(small)(theirs)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_every_call_is_made(monkeypatch):
    seen = []

    def function(x):
        jax.debug.callback(lambda v: seen.append(float(v)), x[0])
        return x + 1

    inputs = [jnp.zeros(2), jnp.ones(2)]
    run, calls = timing.chained(function, inputs, 3)
    jax.effects_barrier()
    seen.clear()
    run()
    jax.effects_barrier()
    assert calls == 4 and sorted(seen) == [0, 0, 1, 1]


def test_targets_stand_beside_what_was_measured():
    base = {"op": "delta_memory", "shape": "s", "baseline": "fla"}
    rows = [
        base | {"program": "forward", "implementation": name, "seconds": time}
        for name, time in (("fla", 3.0), ("pallas_triton", 2.0))
    ]
    for row in rows:
        tables.compare(row, rows)
    lines = tables.targets(rows, ["delta_memory"])
    ours = "delta_memory pallas_triton forward"
    assert f"| {ours} | fla | 1.50 (s) | 0.8 | 1.2 |" in lines
    assert f"| {ours}+backward | fla | not measured | 0.7 | 1.0 |" in lines


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--ops=attention", "--ops=attention: allowed are delta_memory"),
        ("--shapes=huge", "--shapes=huge: allowed are real, tiny"),
        ("--calls=0", "calls"),
        ("--speed=1", "speed"),
    ],
)
def test_wrong_flags_are_one_line(refused, flag, words):
    refused(benchmark_kernels, words, flag)
