"""Entry point: ``scaling``, in the folder ``study``."""

from experiments.shared import cli
from experiments.study import scaling

if __name__ == "__main__":
    cli.run(scaling)
