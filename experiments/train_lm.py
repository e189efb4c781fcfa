"""Entry point: ``train_lm``, in the folder ``language``."""

from experiments.language import train_lm
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(train_lm)
