"""Entry point: ``level_figure``, in the folder ``levels``."""

from experiments.levels import level_figure
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(level_figure)
