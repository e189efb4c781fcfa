"""Entry point: ``levels``, in the folder ``continuum``."""

from experiments.continuum import levels
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(levels)
