"""Entry point: ``benchmark_optimizers``, in the folder ``optimizers``."""

from experiments.optimizers import benchmark_optimizers
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(benchmark_optimizers)
