"""Entry point: ``generate``, in the folder ``language``."""

from experiments.language import generate
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(generate)
