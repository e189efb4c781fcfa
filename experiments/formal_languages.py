"""Entry point: ``formal_languages``, in the folder ``languages``."""

from experiments.languages import formal_languages
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(formal_languages)
