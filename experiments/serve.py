"""Entry point: ``serve``, in the folder ``serving``."""

from experiments.serving import serve
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(serve)
