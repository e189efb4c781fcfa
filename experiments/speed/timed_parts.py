"""The parts of the benchmark of models.

Each part takes the flags, the records of finished runs and models, and returns
the lines of its table, its record, and the data of its figure.
"""

import functools
import statistics

from experiments.shared import table
from experiments.shared.sweep import grid, sweep
from experiments.shared.timing import in_turn, ratio
from experiments.speed import timed_models as timed
from nl_jax.nested.level_table import count_bytes


def throughput(values, records, models):
    """Measures tokens per second of all models, relative to the transformer."""
    if len(records.rows) < values.rounds:
        steps = {}
        for name, model in models.items():
            print(f"compiling {name}", flush=True)
            steps[name] = timed.training_step(
                model, values.batch, values.length
            )
        for number in range(len(records.rows), values.rounds):
            records.add(in_turn(steps, 1), {"round": number})
    seconds = {name: [row[name][0] for row in records.rows] for name in models}
    tokens = values.batch * values.length
    base = seconds["transformer"]
    ratios = {name: ratio(base, each) for name, each in seconds.items()}
    speed = {
        name: tokens / statistics.median(each) for name, each in seconds.items()
    }
    rows = [
        [
            name,
            f"{timed.parameters(models[name]):,}",
            f"{speed[name]:,.0f}",
            f"{ratios[name]:.2f}",
        ]
        for name in sorted(ratios, key=ratios.get, reverse=True)
    ]
    head = ["model", "parameters", "tokens/s", "of transformer"]
    record = {"seconds": seconds, "ratios": ratios, "tokens": tokens}
    return table.markdown(head, rows), record, speed


def scaling(values, records, models, names, lengths, crossing):
    """Measures the cost per token by length, and where the overtaker leads."""
    costs = {}
    for name in names:
        if not timed.recurrent(models[name].config):
            continue
        (row,) = sweep(
            records,
            grid(model=[name]),
            lambda model: {"seconds": _lengths(values, models[model])},
            before=f"{{model}} at {len(lengths)} lengths",
        )
        costs[name] = {
            n: [x / n / values.batch for x in row["seconds"][str(n)]]
            for n in lengths
        }
    medians = {
        name: [1e6 * statistics.median(each[n]) for n in lengths]
        for name, each in costs.items()
    }
    growth = {
        name: ratio(each[lengths[-1]], each[lengths[0]])
        for name, each in costs.items()
    }
    rows = [
        [name, *(f"{x:.0f}" for x in medians[name]), f"{growth[name]:.2f}"]
        for name in costs
    ]
    head = ["model, us/token", *map(str, lengths), "last of first"]
    lines = table.markdown(head, rows)
    ratios, pairs = _overtaking(values, models, crossing, records)
    length = timed.crossing(ratios)
    what = f"{values.overtaker} overtakes transformer"
    if length is None:
        what += f" at no length up to {max(ratios)}"
    elif length == crossing[0]:
        what += f" at or before the shortest length, {length:.0f} tokens"
    else:
        what += f" at {length:.0f} tokens"
    pair_rows = [
        [
            n,
            *(f"{1e6 * statistics.median(x) / n:.0f}" for x in each.values()),
            f"{ratios[n]:.2f}",
        ]
        for n, each in pairs.items()
    ]
    head = ["length", "transformer, us/token", values.overtaker, "speed ratio"]
    lines += ["", *table.markdown(head, pair_rows), "", what]
    record = {"seconds_per_token": costs, "growth": growth}
    record |= {"overtaking": pairs, "overtakes_at": length}
    curves = {name: (lengths, each) for name, each in medians.items()}
    return lines, record, curves


def decoding(values, records, models):
    """Measures time per token and size of state, early and late in a stream."""
    positions = [1, values.stream]

    def run(model):
        decoder = timed.Decoder(models[model], values.piece)
        states = decoder.states(positions)
        steps = {
            str(at): functools.partial(decoder.decode, state, values.calls)
            for at, state in states.items()
        }
        in_turn(steps, 1)  # Warms up caches.
        seconds = in_turn(steps, values.rounds)
        sizes = {str(at): count_bytes(each) for at, each in states.items()}
        return {"seconds": seconds, "bytes": sizes}

    runs = sweep(
        records, grid(model=models), run, before="streaming through {model}"
    )
    found = {row["model"]: row for row in runs}
    first, last = map(str, positions)
    rows, bars = [], {}
    for name, row in found.items():
        early, late = row["seconds"][first], row["seconds"][last]
        bars[name] = 1e3 * statistics.median(late) / values.calls
        rows.append(
            [
                name,
                f"{1e3 * statistics.median(early) / values.calls:.2f}",
                f"{bars[name]:.2f}",
                f"{ratio(late, early):.2f}",
                f"{row['bytes'][first]:,}",
                f"{row['bytes'][last]:,}",
            ]
        )
    head = ["model", f"ms at {first}", f"ms at {last}", "ratio"]
    head += [f"bytes at {first}", f"bytes at {last}"]
    return table.markdown(head, rows), found, bars


def _lengths(values, model):
    """Times one model at each length, in interleaved rounds."""
    steps = {
        str(n): timed.training_step(model, values.batch, n)
        for n in sorted(values.lengths)
    }
    return in_turn(steps, values.rounds)


def _overtaking(values, models, lengths, records):
    """Compares both models at growing lengths until the second is faster."""
    names = ("transformer", values.overtaker)
    ratios, pairs = {}, {}

    def run(overtaker, length):
        steps = {
            name: timed.training_step(models[name], values.batch, length)
            for name in names
        }
        return {"seconds": in_turn(steps, values.rounds)}

    for n in lengths:
        (row,) = sweep(
            records,
            grid(overtaker=[values.overtaker], length=[n]),
            run,
            before="transformer against {overtaker} at {length}",
        )
        pairs[n] = row["seconds"]
        ratios[n] = ratio(*(pairs[n][name] for name in names))
        if ratios[n] >= 1:
            break
    return ratios, pairs
