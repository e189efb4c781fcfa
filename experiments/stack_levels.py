"""Entry point: ``stack_levels``, in the folder ``streams``."""

from experiments.shared import cli
from experiments.streams import stack_levels

if __name__ == "__main__":
    cli.run(stack_levels)
