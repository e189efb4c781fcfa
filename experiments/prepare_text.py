"""Entry point: ``prepare_text``, in the folder ``corpora``."""

from experiments.corpora import prepare_text
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(prepare_text)
