"""Entry point: ``compare``, in the folder ``language``."""

from experiments.language import compare
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(compare)
