"""Draws the level table of Hope with its optimizer: ``docs/levels.png``.

Command (seconds)::

    python -m experiments.level_figure --out=docs/levels.png
"""

from experiments.shared import flags
from nl_jax.models import build, names
from nl_jax.nested import describe
from nl_jax.training import OptimizerConfig, make_optimizer

FLAGS = {
    "model": flags.choice("hope", names(), "Name in the registry."),
    "out": flags.string("docs/levels.png", "Image to write."),
}


def main(values: flags.FlagValues) -> None:
    """Describes the model and the optimizer that ``train_lm`` gives it."""
    model = build(values.model)
    periods = model.parameter_periods(model.parameter_shapes())
    optimizer = make_optimizer(
        OptimizerConfig(), 100, model.logical_axes(), periods
    )
    table = describe(model, optimizer)
    table.figure(values.out)
    print(table)
