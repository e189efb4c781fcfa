"""Entry point: ``novel_languages``, in the folder ``languages``."""

from experiments.languages import novel_languages
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(novel_languages)
