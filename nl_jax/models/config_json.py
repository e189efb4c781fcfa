"""Configurations as JSON, for checkpoints and files of states and weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from nl_jax.errors import InputError
from nl_jax.layers import CMS_OBJECTIVES, CMSObjective, mixer_name
from nl_jax.memory import TABLES, saved_name
from nl_jax.models.model_config import ModelConfig, configure

_TABLES = {**TABLES, CMSObjective: CMS_OBJECTIVES}
"""Table of names for each type of object that a configuration may hold."""


def check_named(config: ModelConfig) -> None:
    """Checks that a model can be loaded from JSON.

    Raises:
        InputError: if an object in it is in no table, or is an optax
            transformation.
    """
    if not all(isinstance(inner, str) for inner in config.cms.inners):
        raise InputError(
            "model.cms.inner holds an optax transformation, which a checkpoint "
            "cannot name; put it into nl_jax.optimizers.NAMED and give its name"
        )
    try:
        configure(ModelConfig(), **to_json(config))
    except InputError as error:
        raise InputError(f"model could not be loaded again: {error}") from error


def to_json(config: Any) -> dict[str, Any]:
    """Returns a configuration as nested mappings of JSON values.

    Objects with a name, such as objectives, are represented by it.

    Raises:
        InputError: if the name stands for something else in its table.
    """
    out = {
        field.name: _plain(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.init
    }
    if isinstance(mixer := out.get("mixer"), dict):
        out["mixer"] = {mixer_name(config.mixer): mixer}
    return out


def same_periods(old: list[int], new: list[int], model: ModelConfig) -> bool:
    """Returns whether default periods stand for the others.

    Earlier versions saved the numbers that defaults stand for.
    """
    return {(), model.cms.periods} == {tuple(old), tuple(new)}


def _plain(value):
    if isinstance(value, np.generic):
        return value.item()
    for kind, table in _TABLES.items():
        if isinstance(value, kind):
            return saved_name(value, table)
    if dataclasses.is_dataclass(value):
        return to_json(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [*map(_plain, value)] if isinstance(value, tuple) else value
