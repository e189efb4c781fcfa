"""Entry point: ``digits``, in the folder ``optimizers``."""

from experiments.optimizers import digits
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(digits)
