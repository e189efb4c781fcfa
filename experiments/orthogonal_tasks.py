"""Entry point: ``orthogonal_tasks``, in the folder ``optimizers``."""

from experiments.optimizers import orthogonal_tasks
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(orthogonal_tasks)
