"""Entry point: ``compile_pod``, in the folder ``pods``."""

from experiments.pods import compile_pod
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(compile_pod)
