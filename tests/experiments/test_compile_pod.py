"""Figures of a compiled step that need no compiler."""

import importlib.util
import types

import pytest

from experiments.pods import compile_pod, compiled_program
from nl_jax import training
from nl_jax.errors import InputError

# A loop of 18 trips: one gather of [2048, 8] f32 per device to [2048, 64], cut
# into two steps of one channel; a sum of 64 KiB after it; each trip reads one
# of 18 slices of 128 bytes, in a fusion within a fusion.
PROGRAM = """
%gather (p: f32[2048,8]) -> f32[2048,64] {
  %p = f32[2048,8]{1,0} parameter(0)
  ROOT %all-gather.1 = f32[2048,64]{1,0} all-gather(%p), channel_id=3
}

%gather.done (p.1: f32[2048,8]) -> f32[2048,64] {
  %p.1 = f32[2048,8]{1,0} parameter(0)
  ROOT %all-gather.2 = f32[2048,64]{1,0} all-gather(%p.1), channel_id=3
}

%take (i: s32[], a: f32[18,32]) -> f32[32] {
  %i = s32[] parameter(0)
  %a = f32[18,32]{1,0} parameter(1)
  ROOT %dynamic-slice.1 = f32[1,32]{1,0} dynamic-slice(%a, %i, %i)
}

%slice (b: f32[18,32], j: s32[]) -> f32[32] {
  %j = s32[] parameter(1)
  %b = f32[18,32]{1,0} parameter(0)
  %c = f32[18,32]{1,0} bitcast(%b)
  ROOT %row.1 = f32[1,32]{1,0} fusion(%j, %c), kind=kLoop, calls=%take
}

%trip (state: (s32[], f32[2048,8])) -> (s32[], f32[2048,8]) {
  %state = (s32[], f32[2048,8]{1,0}) parameter(0)
  %x = f32[2048,8]{1,0} get-tuple-element(%state), index=1
  %stack = f32[18,32]{1,0} get-tuple-element(%state), index=2
  %n = s32[]{:S(1)} get-tuple-element(%state), index=0
  %start = f32[2048,64]{1,0:S(1)} fusion(%x), kind=kCustom, calls=%gather
  %done = f32[2048,64]{1,0:S(1)} fusion(%x), kind=kCustom, calls=%gather.done
  %row = f32[1,32]{1,0} fusion(%stack, %n), kind=kLoop, calls=%slice
  ROOT %tuple.1 = (s32[], f32[2048,8]{1,0}) tuple(%n, %x)
}

%condition (state.1: (s32[], f32[2048,8])) -> pred[] {
  %state.1 = (s32[], f32[2048,8]{1,0}) parameter(0)
  %bound = s32[]{:T(128)} constant(18)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %lt = pred[] compare(%i.1, %bound), direction=LT
}

ENTRY %main (x.1: f32[2048,8]) -> f32[2048,8] {
  %x.1 = f32[2048,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %begin = (s32[], f32[2048,8]{1,0}) tuple(%zero, %x.1)
  %l = (s32[], f32[2048,8]{1,0}) while(%begin), condition=%condition, body=%trip
  %end = f32[2048,8]{1,0} get-tuple-element(%l), index=1
  ROOT %all-reduce.1 = f32[2048,8]{1,0} all-reduce(%end), channel_id=9
}
"""


def test_loops_count_as_often_as_they_run():
    program, entry = compiled_program.parse(PROGRAM)
    times = compiled_program.runs(program, entry)
    assert (entry, times["main"], times["trip"]) == ("main", 1, 18)
    assert compiled_program.collectives(program, times) == {
        "all-gather": (18, 18 * 4 * 2048 * 64),
        "all-reduce": (1, 4 * 2048 * 8),
    }
    local = 4 * 2048 * 8
    # A trip reads x for each half of the gather, whose result stays on the
    # chip, and reads and writes a slice; the sum reads and writes x.
    trip = 2 * local + 2 * 4 * 32
    assert compiled_program.traffic(program, times) == 18 * trip + 2 * local


def test_a_collective_beside_a_loop_runs_once():
    # It begins before the loop, whose trips carry it on.
    line = "  %start = f32[2048,64]{1,0:S(1)} fusion(%x"
    (begin,) = (row for row in PROGRAM.splitlines() if row.startswith(line))
    beside = PROGRAM.replace(f"{begin}\n", "").replace(
        "  %zero", f"{begin}\n  %zero".replace("%x", "%x.1")
    )
    program, entry = compiled_program.parse(beside)
    times = compiled_program.runs(program, entry)
    found = compiled_program.collectives(program, times)
    assert found["all-gather"] == (1, 4 * 2048 * 64)


@pytest.mark.parametrize(
    "topology", ["v4:2x2", "v5e", "v5e:", "v5e:2by4", "", "v5e:4x"]
)
def test_unknown_topologies(topology):
    with pytest.raises(InputError, match=r"--topology=.* must be one of v5e"):
        compile_pod.measure(training.TrainConfig(), topology)


def test_without_the_compiler(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="TPU compiler: pip install"):
        compile_pod.measure(training.TrainConfig(), "v5e:2x4")


def test_advice_names_one_change():
    def advise(held=2**21, **changes):
        flags = training.flag_config(**changes)
        sizes = {"parameters": 2**20, "optimizer": held, "fast_state": 2**29}
        found = {"bytes": sizes, "memory": 2**34}
        shape = {"data": 2, "fsdp": 4, "tensor": 1}
        mesh = types.SimpleNamespace(shape=shape)
        return compile_pod.advice(training.freeze(flags), mesh, found)

    assert "remat=blocks" in advise()
    assert "more mesh.fsdp" in advise(2**34)
    assert "more chips or a smaller model" in advise(2**35)
    blocks = {"remat": "blocks"}
    assert "accumulate=2" in advise(model=blocks, batch_size=16)
    assert "seq_len" in advise(model=blocks, batch_size=8)
    learning = blocks | {"cms": {"objective": "next_token"}}
    assert "mesh.tensor" in advise(model=learning, batch_size=8)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.init_from=runs/a", "init_from='runs/a' must be empty"),
        ("--out=FILE/figures.json", "exists (FILE)"),
        ("--out=/tmp", "--out=/tmp is a folder; name a file"),
        ("--topology=v5e:2x2x2", "chips of v5e form a plane, as in v5e:4x4"),
    ],
)
def test_flags_that_are_refused_before_it_compiles(
    script, tmp_path, flag, words
):
    file = tmp_path / "file"
    file.write_text("")
    status, _, errors = script(compile_pod, flag.replace("FILE", str(file)))
    assert status == 2 and len(errors.splitlines()) == 1
    assert words.replace("FILE", str(file)) in errors
