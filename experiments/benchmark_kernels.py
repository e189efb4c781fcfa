"""Entry point: ``benchmark_kernels``, in the folder ``kernels``."""

from experiments.kernels import benchmark_kernels
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(benchmark_kernels)
