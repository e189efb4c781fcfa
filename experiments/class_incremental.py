"""Entry point: ``class_incremental``, in the folder ``classes``."""

from experiments.classes import class_incremental
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(class_incremental)
