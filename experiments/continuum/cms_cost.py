r"""Cost of levels of a continuum memory that learn while reading.

The model is one block of attention over 64 tokens and two levels. The script
measures its forward pass, and forward and backward of a training loss, for
static levels (``objective="outer"``, changed only by the optimizer), for levels
that learn from the model's own next-token loss, with second derivatives and
without, and for levels that learn from their own keys and values. Times are
processor time, the median of interleaved rounds. Memory is what XLA reserves in
addition to arguments and results (``memory_analysis``). The last column is the
exponent with which the memory of the backward pass grows with the length: 1 is
linear, 0.5 the square root.

Command (resumable; minutes, nearly all of them compilation)::

    python -m experiments.cms_cost

Measured on one core of a busy machine: time as a multiple of the static
network's, forward and with backward; MB with backward, and their growth:

========================  ======  =======  ========  ======  ======
levels                    tokens  forward  backward      MB  growth
========================  ======  =======  ========  ======  ======
static                       256      1.0       1.0     5.3    1.03
static                     4,096      1.0       1.0    92.5    1.03
next_token                   256      1.9       3.8     5.5    0.46
next_token                 4,096      2.2       2.3    19.9    0.46
next_token, first order      256      1.8       2.2     4.8    0.50
next_token, first order    4,096      1.8       1.4    19.2    0.50
local                        256      1.9       2.6     7.3    0.82
local                      4,096      1.8       2.0    69.6    0.82
========================  ======  =======  ========  ======  ======

Results go to ``--out``: a JSON file per case, a record, a
Markdown table and a plot.
"""

import math
import statistics
import time

import jax

from experiments.shared import flags, plot, table
from experiments.shared.records import Records, write
from experiments.shared.timing import in_turn
from nl_jax import training
from nl_jax.errors import InputError
from nl_jax.models import build

ARMS = {
    "static": {"objective": "outer"},
    "next_token": {"objective": "next_token"},
    "next_token, first order": {"objective": "next_token", "first_order": True},
    "local": {"objective": "local"},
}
_PASSES = ("forward", "both")
_SETTINGS = {
    "chunk": flags.integer(16, "Tokens between steps of the faster level.", 2),
    "slower": flags.integer(4, "Such chunks between steps of the slower one."),
    "width": flags.integer(64, "Of the model, a multiple of 8.", multiple_of=8),
    "layers": flags.integer(1, "Blocks."),
    "batch": flags.integer(1, "Rows, each with its own fast weights."),
    "rounds": flags.integer(
        3, "Calls of each case, of which the median counts."
    ),
}
FLAGS = {
    "lengths": flags.integers(
        [256, 4096], "Tokens, multiples of --chunk, rising.", 1
    ),
    **_SETTINGS,
    "out": flags.folder("runs/cms_cost", "Folder of results."),
}


def main(values: flags.FlagValues) -> None:
    """Measures all cases without a record and writes the results."""
    lengths = values.lengths
    wrong = [n for n in lengths if n % values.chunk]
    if wrong or lengths != sorted(set(lengths)):
        raise InputError(
            f"--lengths={','.join(map(str, lengths))}: must rise and be "
            f"multiples of --chunk={values.chunk}"
        )
    settings = flags.pick(values, _SETTINGS)
    records = Records(f"{values.out}/cms_cost", settings)
    for length in lengths:
        if not all(records.find(arm=arm, length=length) for arm in ARMS):
            # Ratios are to the static network, measured in the same minute.
            for row in measure(values, length):
                cell = {"arm": row.pop("arm"), "length": length}
                print(records.add(row, cell), flush=True)
    rows = {
        (arm, length): records.find(arm=arm, length=length)
        for arm in ARMS
        for length in lengths
    }
    lines, growth = summarize(rows, lengths)
    record = {
        "settings": settings,
        "rows": list(rows.values()),
        "growth": growth,
    }
    sizes = {
        arm: [rows[arm, n]["both_bytes"] / 1e6 for n in lengths] for arm in ARMS
    }
    panel = plot.Panel(
        {arm: (lengths, each) for arm, each in sizes.items()},
        "tokens",
        "MB of the backward pass",
        scales=("log", "log"),
        style="o-",
    )
    write(values.out, "cms_cost", lines, record, plot.curves(panel))


def measure(values, length):
    """Returns a row for each variant at one length."""
    cases, steps = {}, {}
    for arm, choices in ARMS.items():
        model = build(
            "hope-attention",
            d_model=values.width,
            n_layers=values.layers,
            n_heads=2,
            attention={"window": 64},
            cms={
                "step_periods": (1, values.slower),
                "token_periods": (values.chunk, values.chunk * values.slower),
                "hidden": 2.0,
            }
            | choices,
        )
        cases[arm], arguments = compile_passes(model, values.batch, length)
        for kind, run in cases[arm].items():
            steps[f"{arm} {kind}"] = lambda run=run, own=arguments: run(*own)
    seconds = in_turn(steps, values.rounds, clock=time.process_time)
    rows = []
    for arm, passes in cases.items():
        row = {"arm": arm}
        for kind, run in passes.items():
            row[f"{kind}_seconds"] = statistics.median(seconds[f"{arm} {kind}"])
            row[f"{kind}_bytes"] = run.memory_analysis().temp_size_in_bytes
        rows.append(row)
    return rows


def compile_passes(model, batch, length):
    """Returns compiled passes by name, called once, and their arguments."""
    shape = (batch, length)
    tokens = jax.random.randint(jax.random.key(0), shape, 0, 256)
    variables = jax.jit(model.init)(jax.random.key(1), tokens[:, :1])

    def loss(variables, tokens):
        logits, _ = model.apply(variables, tokens)
        return training.token_losses(logits[:, :-1], tokens[:, 1:]).mean()

    passes = {}
    for kind, function in (("forward", loss), ("both", jax.grad(loss))):
        passes[kind] = jax.jit(function).lower(variables, tokens).compile()
        jax.block_until_ready(passes[kind](variables, tokens))
    return passes, (variables, tokens)


def summarize(rows, lengths):
    """Returns the lines of the table and the growth of each variant."""
    body, growth = [], {}
    for arm in ARMS:
        first, last = rows[arm, lengths[0]], rows[arm, lengths[-1]]
        exponent = None
        if len(lengths) > 1:
            exponent = math.log(last["both_bytes"] / first["both_bytes"])
            exponent /= math.log(lengths[-1] / lengths[0])
        growth[arm] = exponent
        for length in lengths:
            row, static = rows[arm, length], rows["static", length]
            times = [f"{kind}_seconds" for kind in _PASSES]
            body.append(
                [
                    arm,
                    f"{length:,}",
                    *(f"{row[key] / static[key]:.1f}" for key in times),
                    *(f"{row[f'{kind}_bytes'] / 1e6:.1f}" for kind in _PASSES),
                    "" if exponent is None else f"{exponent:.2f}",
                ]
            )
    head = ["levels", "tokens", "forward, of static", "with backward"]
    head += ["forward, MB", "with backward, MB", "growth"]
    return table.markdown(head, body), growth
