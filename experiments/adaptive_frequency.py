"""Entry point: ``adaptive_frequency``, in the folder ``levels``."""

from experiments.levels import adaptive_frequency
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(adaptive_frequency)
