"""Entry point: ``needle``, in the folder ``haystacks``."""

from experiments.haystacks import needle
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(needle)
