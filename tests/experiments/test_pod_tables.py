"""Tables of compiled steps, and equality of meshes."""

import json
import types

import pytest

from experiments.pods import pod_tables
from tests.devices import run_on_devices

GIB = 2**30
FIGURES = {
    "bytes": {
        "parameters": GIB // 4,
        "optimizer": GIB // 2,
        "fast_state": 9 * GIB,  # Part of the temporaries.
        "temporaries": 3 * GIB // 2,
    },
    "needs": 5 * GIB // 2,
    "fits": True,
    "whole_batch_arrays": 2,
}
TOO_LARGE = {
    "bytes": {"parameters": GIB, "optimizer": GIB, "fast_state": 0},
    "needs": 28 * GIB,
    "fits": False,
}


def test_rows_that_are_there_are_not_compiled(script, tmp_path, monkeypatch):
    failed = types.SimpleNamespace(returncode=2, stderr="error: no compiler\n")
    monkeypatch.setattr(
        pod_tables.subprocess, "run", lambda *unused, **options: failed
    )
    for name, found in (
        ("hope-v5e-16x16-fsdp-256", FIGURES),
        ("hope-next_token-v5e-16x16-fsdp-256", TOO_LARGE),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    status, out, errors = script(
        pod_tables, f"--out={tmp_path}", "--tables=large", "--rows=fsdp 256"
    )
    assert status == 2 and out == ""  # That of the Transformer is missing.
    words = "error: transformer, v5e:16x16, fsdp 256: error: no compiler\n"
    assert errors == words
    row = pod_tables.TABLES["large"][1]
    assert row[0] == ("hope", "v5e:16x16", "fsdp 256")
    found = [
        (cells, pod_tables.figures(tmp_path, cells, own, config))
        for cells, own, config in pod_tables.TABLES["large"][1:3]
    ]
    assert pod_tables.table(found)[2:] == [
        "| hope | v5e:16x16 | fsdp 256 | 0.750 GiB | 1.500 GiB | "
        "2.500 GiB | 2 |",
        "| hope, next_token | v5e:16x16 | fsdp 256 | 2.000 GiB | 26.000 GiB | "
        "28.000 GiB: too much |  |",
    ]


def test_unknown_rows_are_refused(script, tmp_path):
    status, _, errors = script(pod_tables, f"--out={tmp_path}", "--rows=llama")
    assert status == 2 and "--rows=llama: no row has this text" in errors


EQUAL = """
import sys
from experiments.pods.equal_meshes import ONE, difference, losses
name, mesh, optimizer = sys.argv[1:]
# Levels that learn in context are slow to compile, and were wrong at once.
steps = 1 if "next_token" in name else 20
alone, cut = (losses(name, m, steps, 1e-3, optimizer) for m in (ONE, mesh))
print(difference(cut, alone))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mesh", "optimizer"),
    [
        ("transformer", "2x2x2", "m3"),
        ("gated-deltanet", "1x8x1", "adamw"),
        ("titans", "1x2x4", "adamw"),
        ("hope", "2x2x2", "adamw"),
        ("lstm", "2x2x2", "adamw"),
        ("hope", "1x2x2x2", "adamw"),
        ("hope-next_token", "2x2x2", "adamw"),
        ("titans-mac", "2x2x2", "adamw"),
    ],
)
def test_shardings_change_no_loss(name, mesh, optimizer):
    assert 0 <= float(run_on_devices(EQUAL, name, mesh, optimizer)) < 1e-5
