"""Entry point: ``report``, in the folder ``reporting``."""

from experiments.reporting import report
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(report)
