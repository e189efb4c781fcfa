"""Choice of an operation's implementation for each platform.

A program may be lowered for a platform that this process lacks. It therefore
has one branch per platform, with at most one kernel each. The devices it is
compiled for decide only whether a GPU or TPU is new enough.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from pallas_kernels import device

Kernels = Mapping[str, tuple[str, Any]]
"""Platform and module of each kernel of an operation, by name. On each platform
the last kernel that can run is preferred."""
Choice = str | tuple[tuple[str, str], ...]
"""Name of the implementation for all platforms, or ``(platform, kernel)``
pairs; other platforms run the last plain implementation."""


def choose_kernels(
    implementation: str | None,
    plain: Sequence[str],
    kernels: Kernels,
    why_not: Callable[[Any], str | None],
    *,
    worth: bool = True,
) -> Choice:
    """Chooses the implementation to run.

    Args:
        implementation: requested implementation; ``None`` for the best.
        plain: names of implementations without kernels, the best one last.
        kernels: kernels of the operation.
        why_not: function from a kernel's module to the reason why it cannot
            run, or ``None`` if it can.
        worth: whether kernels are worthwhile for these shapes.

    Raises:
        ValueError: if the implementation does not exist or cannot run.

    Example:
        >>> kernels = {"fast": ("tpu", None)}
        >>> choose_kernels(None, ("plain",), kernels, lambda module: None)
        (('tpu', 'fast'),)
        >>> choose_kernels(None, ("plain",), kernels, lambda module: "too big")
        'plain'
    """
    names = (*plain, *kernels)
    if implementation not in (None, *names):
        raise ValueError(
            f"implementation={implementation!r} does not exist here; allowed: "
            f"None, {', '.join(map(repr, names))}"
        )
    if implementation is not None:
        reason = None
        if implementation in kernels:
            reason = why_not(kernels[implementation][1])
        if reason:
            raise ValueError(
                f"implementation={implementation!r} cannot run: {reason}"
            )
        return implementation
    able = {
        platform: name
        for name, (platform, module) in kernels.items()
        if worth and why_not(module) is None
    }
    found = {p: name for p, name in able.items() if not device.unsupported(p)}
    return tuple(found.items()) or plain[-1]


def name_on(platform: str, choice: Choice, plain: Sequence[str]) -> str:
    """Returns the implementation that a choice runs on a platform."""
    if isinstance(choice, str):
        return choice
    return dict(choice).get(platform, plain[-1])


def run_kernels(
    choice: Choice,
    kernels: Kernels,
    bind: Callable[[Any], Callable[..., Any]],
    plain: Callable[..., Any],
    *operands: Any,
) -> Any:
    """Runs the chosen kernel, or the one for the platform.

    Args:
        choice: choice of :func:`choose_kernels` that is not a plain one.
        kernels: kernels of the operation.
        bind: function from a kernel's module to a function of the operands.
        plain: function of the operands, for all other platforms.
        *operands: arrays.
    """
    if isinstance(choice, str):
        return bind(kernels[choice][1])(*operands)
    by_platform = {p: bind(kernels[name][1]) for p, name in choice}
    return jax.lax.platform_dependent(*operands, default=plain, **by_platform)
