"""Entry point: ``gradient_growth``, in the folder ``recall``."""

from experiments.recall import gradient_growth
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(gradient_growth)
