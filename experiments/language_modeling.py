"""Entry point: ``language_modeling``, in the folder ``study``."""

from experiments.shared import cli
from experiments.study import language_modeling

if __name__ == "__main__":
    cli.run(language_modeling)
