"""Entry point: ``context_use``, in the folder ``study``."""

from experiments.shared import cli
from experiments.study import context_use

if __name__ == "__main__":
    cli.run(context_use)
