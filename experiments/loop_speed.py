"""Entry point: ``loop_speed``, in the folder ``speed``."""

from experiments.shared import cli
from experiments.speed import loop_speed

if __name__ == "__main__":
    cli.run(loop_speed)
