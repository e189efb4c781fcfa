"""Entry point: ``level_figure``, in the folder ``continuum``."""

from experiments.continuum import level_figure
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(level_figure)
