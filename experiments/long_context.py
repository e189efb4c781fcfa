"""Entry point: ``long_context``, in the folder ``study``."""

from experiments.shared import cli
from experiments.study import long_context

if __name__ == "__main__":
    cli.run(long_context)
