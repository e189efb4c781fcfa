"""Entry point: ``stream_stability``, in the folder ``streams``."""

from experiments.shared import cli
from experiments.streams import stream_stability

if __name__ == "__main__":
    cli.run(stream_stability)
