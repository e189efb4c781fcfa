"""Trains a model on split text, as all runs of the studies do."""

import os
from collections.abc import Mapping
from typing import Any

from experiments.shared import flags
from experiments.shared.workers import StoppedError
from nl_jax import training
from nl_jax.errors import DivergedError
from nl_jax.models import ModelConfig

SIZES = {
    "width": flags.integer(128, "Width of the models."),
    "layers": flags.integer(2, "Blocks."),
    "heads": flags.integer(4, "Heads."),
    "steps": flags.integer(300, "Steps."),
    "batch": flags.integer(8, "Sequences per step."),
    "length": flags.integer(256, "Tokens per sequence.", multiple_of=64),
    "held_out": flags.integer(131_072, "Bytes to evaluate on."),
}
"""Flags of models and of their training, for the settings of a study."""


def shape_of(settings: Mapping[str, Any]) -> dict[str, int]:
    """Returns the fields of ``ModelConfig`` that ``SIZES`` sets.

    Example:
        >>> shape_of({"width": 64, "layers": 2, "heads": 4, "steps": 300})
        {'d_model': 64, 'n_layers': 2, 'n_heads': 4}
    """
    return {
        "d_model": settings["width"],
        "n_layers": settings["layers"],
        "n_heads": settings["heads"],
    }


def train_on_text(
    model: ModelConfig,
    paths: tuple[str, str],
    *,
    rate: float,
    seed: int,
    settings: Mapping[str, Any],
    workdir: str | os.PathLike | None = None,
    **data: Any,
) -> training.TrainResult | None:
    """Returns a trained model, or ``None`` if training diverged.

    Args:
        model: to be trained.
        paths: of the text to train on and of the held-out text.
        rate: learning rate at its peak.
        seed: of parameters and batches.
        settings: ``steps``, ``batch``, ``length`` and ``held_out``, the number
            of bytes to evaluate on.
        workdir: folder of the run, from whose checkpoints it goes on.
        **data: more fields of ``DataConfig``.

    Raises:
        StoppedError: if the run was stopped before its end.
    """
    train, held_out = paths
    config = training.freeze(
        training.flag_config(
            data={
                "paths": (train,),
                "held_out_paths": (held_out,),
                "max_held_out_bytes": settings["held_out"],
                **data,
            },
            optimizer={
                "learning_rate": rate,
                "warmup_steps": max(settings["steps"] // 10, 1),
            },
            sample={"tokens": 0},
            seed=seed,
            steps=settings["steps"],
            batch_size=settings["batch"],
            seq_len=settings["length"],
            eval_every=0,
        ),
        base=model,
    )
    try:
        result = training.train(config, workdir)
    except DivergedError as error:
        print(error.reason, flush=True)
        return None
    if result.step < config.steps:
        raise StoppedError
    return result
