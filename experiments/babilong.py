"""Entry point: ``babilong``, in the folder ``haystacks``."""

from experiments.haystacks import babilong
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(babilong)
