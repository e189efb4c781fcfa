"""Entry point: ``optimizer_lm``, in the folder ``optimizers``."""

from experiments.optimizers import optimizer_lm
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(optimizer_lm)
