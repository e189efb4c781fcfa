"""Entry point: ``pod_tables``, in the folder ``pods``."""

from experiments.pods import pod_tables
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(pod_tables)
