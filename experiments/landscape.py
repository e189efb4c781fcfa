"""Entry point: ``landscape``, in the folder ``optimizers``."""

from experiments.optimizers import landscape
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(landscape)
