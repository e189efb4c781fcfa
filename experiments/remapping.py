"""Entry point: ``remapping``, in the folder ``recall``."""

from experiments.recall import remapping
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(remapping)
