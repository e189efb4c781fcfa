"""Entry point: ``levels_effect``, in the folder ``classes``."""

from experiments.classes import levels_effect
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(levels_effect)
