"""Entry point: ``cms_cost``, in the folder ``continuum``."""

from experiments.continuum import cms_cost
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(cms_cost)
