"""Entry point: ``evaluate``, in the folder ``language``."""

from experiments.language import evaluate
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(evaluate)
