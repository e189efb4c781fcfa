"""Entry point: ``segment_cost``, in the folder ``speed``."""

from experiments.shared import cli
from experiments.speed import segment_cost

if __name__ == "__main__":
    cli.run(segment_cost)
