"""Errors that people can do something about, in words for them."""

import jax

from nl_jax.errors import InputError


def explain(error: Exception) -> str | None:
    """Returns what is wrong, or ``None`` for a fault of the program.

    Example:
        >>> explain(InputError("steps=0 must be positive"))
        'steps=0 must be positive'
        >>> explain(FileNotFoundError(2, "No such file or directory", "a.txt"))
        'No such file or directory (a.txt)'
        >>> explain(ZeroDivisionError())
    """
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, jax.errors.JaxRuntimeError):
        first = str(error).splitlines()[0]
        if "RESOURCE_EXHAUSTED" in first or "Out of memory" in first:
            return (
                "the devices have too little memory; make the model, "
                f"batch_size or seq_len smaller ({first})"
            )
    if isinstance(error, OSError):
        place = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror or error}{place}"
    return None
