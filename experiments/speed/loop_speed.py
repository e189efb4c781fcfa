"""What the training loop saves: batches put ahead, metrics fetched together.

Four loops train one model in turn, for ``--steps`` steps in each round::

    python -m experiments.loop_speed

They put a batch on the devices when it is asked for or ahead, in a thread; and
fetch a step's metrics before the next is started, once it is started, or those
of ``--log_every`` steps together. The last is that of ``train_lm``. Ratios are
medians within rounds, of wall clock time. Results go to ``--out``: a record and
a Markdown table.
"""

import functools
import statistics
from collections.abc import Callable

import jax

from experiments.shared import flags, table
from experiments.shared.records import write
from experiments.shared.timing import in_turn, ratio
from nl_jax import training
from nl_jax.data import prepare, train_batches
from nl_jax.models import LanguageModel
from nl_jax.training import mesh as mesh_lib
from nl_jax.training.step import compile_programs, draw_state, plan_state

_SETTINGS = {
    "model": flags.string("transformer", "Name of the model."),
    "width": flags.integer(64, "Of the model, a multiple of 8.", multiple_of=8),
    "batch": flags.integer(8, "Rows."),
    "length": flags.integer(128, "Tokens per row.", 64, multiple_of=64),
    "log_every": flags.integer(20, "Steps whose metrics come together."),
    "steps": flags.integer(40, "Steps in a round."),
    "rounds": flags.integer(9, "Rounds; medians count."),
}
FLAGS = {**_SETTINGS, "out": flags.folder("runs/loop_speed", "For results.")}
_AT_ONCE, _AFTER = "at once", "after the next began"


def main(values: flags.FlagValues) -> None:
    """Measures and writes the results."""
    settings = flags.pick(values, _SETTINGS)
    sizes = {"d_model": values.width, "n_heads": 2, "n_layers": 1}
    config = training.freeze(
        training.flag_config(
            model={"name": values.model, **sizes},
            batch_size=values.batch,
            seq_len=values.length,
        )
    )
    together = f"{values.log_every} together"
    cases = {
        ("when asked for", _AT_ONCE): (False, 0),
        ("when asked for", _AFTER): (False, 1),
        ("ahead", _AFTER): (True, 1),
        ("ahead", together): (True, values.log_every),
    }
    mesh = mesh_lib.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        run, close = prepare_loop(config, mesh, values.steps)
        loops = {
            ", ".join(names): functools.partial(run, *case)
            for names, case in cases.items()
        }
        in_turn(loops, 1)
        seconds = list(in_turn(loops, values.rounds).values())
        close()
    rows = [
        {
            "batches_put": put,
            "metrics_fetched": fetched,
            "step_seconds": statistics.median(each) / values.steps,
            "ratio": ratio(each, seconds[0]),
        }
        for (put, fetched), each in zip(cases, seconds, strict=True)
    ]
    body = [
        (
            row["batches_put"],
            row["metrics_fetched"],
            f"{1e3 * row['step_seconds']:.2f}",
            f"{row['ratio']:.3f}",
        )
        for row in rows
    ]
    head = ("batches put", "metrics fetched", "ms per step", "ratio")
    record = {"settings": settings, "rows": rows}
    write(values.out, "loop_speed", table.markdown(head, body), record)


def prepare_loop(
    config: training.TrainConfig, mesh: jax.sharding.Mesh, steps: int
) -> tuple[Callable[[bool, int], None], Callable[[], None]]:
    """Returns ``(run, close)``.

    ``run(ahead, every)`` trains for ``steps`` steps, with batches put on the
    devices ahead or not, and fetches metrics once there are ``every``; 0 for
    before the next step.
    """
    model = LanguageModel(config.model)
    optimizer, shapes = plan_state(config, model, mesh)
    data = prepare(config.data, config.seq_len)
    options = {"seq_len": config.seq_len, "batch_size": config.batch_size}
    put = functools.partial(mesh_lib.global_batch, mesh)
    batches = {
        False: train_batches(data, config.data, seed=0, **options),
        True: train_batches(data, config.data, seed=0, put=put, **options),
    }
    lengths = data.tokenizer.byte_lengths
    programs = compile_programs(
        config, model, optimizer, mesh, shapes, lengths, next(batches[False])
    )
    state = draw_state(config, model, optimizer, shapes)

    def run(ahead: bool, every: int) -> None:
        nonlocal state
        pending: list = []
        for _ in range(steps):
            batch = next(batches[ahead])
            batch = batch if ahead else put(batch)
            state, metrics = programs.train_step(state, batch)
            if pending and len(pending) == every:
                jax.device_get(pending)
                pending.clear()
            pending.append(metrics)
            if not every:
                jax.device_get(pending)
                pending.clear()
        jax.device_get(pending)

    def close() -> None:
        for iterator in batches.values():
            iterator.close()

    return run, close
