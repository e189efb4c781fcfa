"""Entry point: ``small_sweep``, in the folder ``reporting``."""

from experiments.reporting import small_sweep
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(small_sweep)
