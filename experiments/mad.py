"""Entry point: ``mad``, in the folder ``synthetic``."""

from experiments.shared import cli
from experiments.synthetic import mad

if __name__ == "__main__":
    cli.run(mad)
