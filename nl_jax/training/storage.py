"""What everything saved with Orbax shares: errors, and JSON beside arrays."""

from orbax.checkpoint import v1 as ocp

__all__ = ["ORBAX_ERRORS", "first_line", "orbax_context"]

ORBAX_ERRORS = (KeyError, ValueError, TypeError, OSError, RuntimeError)
"""What Orbax and TensorStore raise for damaged files and failed writes."""


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
