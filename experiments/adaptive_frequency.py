"""Entry point: ``adaptive_frequency``, in the folder ``continuum``."""

from experiments.continuum import adaptive_frequency
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(adaptive_frequency)
