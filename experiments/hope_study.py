"""Entry point: ``hope_study``, in the folder ``study``."""

from experiments.shared import cli
from experiments.study import hope_study

if __name__ == "__main__":
    cli.run(hope_study)
