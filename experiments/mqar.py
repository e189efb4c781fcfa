"""Entry point: ``mqar``, in the folder ``recall``."""

from experiments.recall import mqar
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(mqar)
