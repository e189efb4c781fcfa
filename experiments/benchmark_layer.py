"""Entry point: ``benchmark_layer``, in the folder ``speed``."""

from experiments.shared import cli
from experiments.speed import benchmark_layer

if __name__ == "__main__":
    cli.run(benchmark_layer)
