"""Entry point: ``stream_speed``, in the folder ``streams``."""

from experiments.shared import cli
from experiments.streams import stream_speed

if __name__ == "__main__":
    cli.run(stream_speed)
