"""Entry point: ``export``, in the folder ``language``."""

from experiments.language import export
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(export)
