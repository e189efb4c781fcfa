"""Entry point: ``quotations``, in the folder ``language``."""

from experiments.language import quotations
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(quotations)
