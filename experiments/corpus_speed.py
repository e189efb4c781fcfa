"""Entry point: ``corpus_speed``, in the folder ``corpora``."""

from experiments.corpora import corpus_speed
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(corpus_speed)
