"""Entry point: ``benchmark_models``, in the folder ``speed``."""

from experiments.shared import cli
from experiments.speed import benchmark_models

if __name__ == "__main__":
    cli.run(benchmark_models)
