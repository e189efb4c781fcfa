"""Files that are whole or not there: JSON, and JSON beside Orbax's arrays."""

import json
import os
import pathlib
from typing import Any

from orbax.checkpoint import v1 as ocp

ORBAX_ERRORS = (KeyError, ValueError, TypeError, OSError, RuntimeError)
"""What Orbax and TensorStore raise for damaged files and failed writes."""


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes a file that is whole or not there."""
    path = pathlib.Path(path)
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(fresh, path)


def orbax_context() -> ocp.Context:
    """Returns how to save ``meta``: as JSON, where Orbax would make arrays."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


def first_line(error: BaseException) -> str:
    """Returns an error's first line, cut in its middle."""
    text = str(error).strip().strip("\"'") or type(error).__name__
    text = text.splitlines()[0]
    # The system's own words are the last.
    return text if len(text) < 200 else f"{text[:60]} ... {text[-120:]}"
