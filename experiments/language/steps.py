"""The flag ``--list_steps`` of the scripts that use checkpoints."""

from experiments.shared import flags, table
from nl_jax import training

LIST_STEPS = flags.switch(
    "Read all checkpoints, list them and whether they are intact, and stop."
)


def print_steps(workdir: str) -> None:
    """Prints a table of the checkpoints of a run."""
    rows = [
        [
            found.step,
            f"{found.saved.astimezone():%Y-%m-%d %H:%M:%S}",
            f"{found.n_bytes / 1e6:.1f} MB",
            found.problem or "intact",
        ]
        for found in training.list_steps(workdir)
    ]
    print("\n".join(table.markdown(["step", "saved", "size", "state"], rows)))
