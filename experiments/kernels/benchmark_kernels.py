r"""Speed of the kernels: milliseconds, shares of ceilings, ratios to baselines.

On a machine with a GPU, one command measures the highest rates at which it
copies and multiplies. Then it times, at shapes of real models,

- ``delta_memory``: each implementation forward, and forward and backward,
  compared with fla's Triton kernels and jax-linear-attention if those are
  installed (``pip install torch flash-linear-attention``);
- ``mlp_memory``: two layers that learn in context, each implementation compared
  with the chunks in plain ``jax.numpy``;
- ``newton_schulz``: each implementation compared with the batched form.

Results are first compared with a float32 token scan (gradients too, on the
first 1,024 tokens of a text). Implementations with wrong results are not timed.

Command (minutes)::

    python -m experiments.benchmark_kernels

Without an accelerator the kernels are checked in interpret mode at tiny shapes
and nothing is timed; ``--shapes=tiny`` also times plain ``jax.numpy``.

Expected: not known yet, because no GPU or TPU was available. The second table
shows the targets next to the measured ratios. Floor: the time that moving all
arguments and results once takes at the rate of a copy, as a share of the
measured time. TFLOP/s: counts the products in the formula, not the additional
ones of a chunk. Ratio: the time of the baseline divided by this time, in the
same run. The baseline of ``delta_memory`` is fla, that of the others is plain
``jax.numpy``.
"""

import os

import jax

from experiments.kernels import peers, tables
from experiments.kernels.case import (
    PLATFORMS,
    difference,
    interpreter,
    with_gradients,
)
from experiments.kernels.cases import CASES, cases
from experiments.kernels.timing import ceilings, chained, measure
from experiments.shared import flags
from experiments.shared.records import write
from nl_jax.errors import InputError
from pallas_kernels.device import here

SIZES = ("real", "tiny")
FLAGS = {
    "ops": flags.words(list(CASES), "Which ops.", CASES),
    "shapes": flags.string(
        "real", f"Of models or for a quick look: {' or '.join(SIZES)}."
    ),
    "rounds": flags.integer(7, "Rounds of each of two repeats."),
    "calls": flags.integer(10, "Calls in a round, inside one program."),
    "out": flags.folder("runs/benchmark_kernels", "Folder."),
}


def main(values: flags.FlagValues) -> None:
    """Checks and measures; writes a table, the targets and a record."""
    if values.shapes not in SIZES:
        raise InputError(
            f"--shapes={values.shapes}: allowed are {', '.join(SIZES)}"
        )
    # PyTorch needs part of the device's memory too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    bare = here() == "cpu"
    limits, rows = None, []
    if not bare or values.shapes == "tiny":
        size, side = (2**30, 8192) if values.shapes == "real" else (2**22, 256)
        limits = ceilings(size, side, values.calls, values.rounds)
    for case in cases(values.ops, "tiny" if bare else values.shapes):
        for program in case.programs:
            rows += _rows(case, program, limits, values)
    for row in rows:
        tables.compare(row, rows)
    lines = tables.lines(rows, limits, bare, values)
    record = {
        "ceilings": limits,
        "rows": rows,
        "peers": peers.versions(),
        **flags.pick(values, ("rounds", "calls", "shapes")),
    }
    write(values.out, "benchmark_kernels", lines, record)


def _rows(case, program, limits, values):
    """Returns a row for each implementation and library, measured or not."""
    sets = [case.draw(key) for key in jax.random.split(jax.random.key(0))]
    short = case.short(sets[0])
    checks = [(short, jax.jit(case.true(program))(short))]
    if program == "forward" and short is not sets[0]:
        checks.append((sets[0], jax.jit(case.truth)(sets[0])))
    libraries = peers.PEERS if case.op == "delta_memory" else ()
    rows = []
    for name in (*case.implementations, *libraries):
        row = {
            "op": case.op,
            "shape": case.shape,
            "program": program,
            "implementation": name,
            "baseline": case.baseline,
        }
        print(tables.name(row), flush=True)
        try:
            if name in libraries:
                _peer(row, case, sets, limits, values)
            else:
                _ours(row, case, sets, checks, limits, values)
        except jax.errors.JaxRuntimeError as problem:
            # For example too large for this device; the others still run.
            row["reason"] = str(problem).splitlines()[0]
        rows.append(row)
    return rows


def _ours(row, case, sets, checks, limits, values):
    """Checks one of our implementations, then times it."""
    name, program = row["implementation"], row["program"]
    where = PLATFORMS.get(name)
    there = where in (None, here())
    if not there and here() != "cpu":
        row["reason"] = f"it runs on {where}"
        return
    interpret = False if there else interpreter(name)
    function = case.function(name, program, interpret)
    try:
        for arguments, expected in checks:
            found = jax.jit(function)(arguments)
            if not _right(row, found, expected, case):
                return
    except ValueError as problem:
        if "cannot run" not in str(problem):
            raise
        row["reason"] = str(problem)
        return
    if not there:
        row["reason"] = f"there is no {where} here; right in interpret mode"
    elif limits is None:
        row["reason"] = "without an accelerator only with --shapes=tiny"
    else:
        _time(row, case, limits, values, *chained(function, sets, values.calls))


def _peer(row, case, sets, limits, values):
    """Checks another library, then times it."""
    name, program = row["implementation"], row["program"]
    if here() != "cuda":
        row["reason"] = "there is no GPU here"
        return
    if reason := peers.why_not(name, case):
        row["reason"] = reason
        return
    peer = peers.PEERS[name](program)
    truth = peers.truth(case)
    if program != "forward":
        truth = with_gradients(truth)
    short = peers.to_theirs(case.short(sets[0]))
    if _right(row, peer.results(short), jax.jit(truth)(short), case):
        theirs = [peers.to_theirs(arrays) for arrays in sets]
        _time(row, case, limits, values, *peer.timed(theirs, values.calls))


def _right(row, found, expected, case):
    """Stores the largest error; returns whether it is within the tolerance."""
    error = max(difference(found, expected), row.get("error", 0.0))
    row["error"] = error
    if not error <= case.tolerance:  # NaN is wrong.
        row["reason"] = (
            f"it is wrong, by {error:.3g} where {case.tolerance} is allowed"
        )
    return error <= case.tolerance


def _time(row, case, limits, values, run, calls):
    time = measure(run, calls, values.rounds)
    moved, operations = case.work(row["program"])
    row |= {
        "seconds": time.seconds,
        "spread": time.spread,
        "tflops": operations / time.seconds / 1e12,
        "floor": moved / limits["bytes"] / time.seconds,
    }
