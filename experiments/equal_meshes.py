"""Entry point: ``equal_meshes``, in the folder ``pods``."""

from experiments.pods import equal_meshes
from experiments.shared import cli

if __name__ == "__main__":
    cli.run(equal_meshes)
