"""Which implementation of an operation runs where.

Nothing is chosen by the devices of this process: a program may be lowered for
a platform that is not there, and for each platform at most one kernel is a
branch of the program. What a program is compiled for settles only whether a
GPU or TPU is new enough.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from pallas_kernels import device

Kernels = Mapping[str, tuple[str, Any]]
"""An operation's kernels by name: the platform, and the module that holds the
kernel. Of those for one platform the last that can run is preferred."""
Choice = str | tuple[tuple[str, str], ...]
"""What runs on every platform, or the name of the kernel of each platform that
has one, ``(platform, name)``; the last plain form runs on all others."""


def choose_kernels(
    implementation: str | None,
    plain: Sequence[str],
    kernels: Kernels,
    why_not: Callable[[Any], str | None],
    *,
    worth: bool = True,
) -> Choice:
    """Settles what runs.

    Args:
        implementation: the name that the caller gave; ``None`` for the best.
        plain: names of what needs no kernel; the last one is the best.
        kernels: the operation's.
        why_not: says of a module why its kernel cannot run; ``None``: it can.
        worth: whether kernels are worth their while for these shapes.

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
    """Returns the name of what a choice runs on a platform."""
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
    """Runs the kernel that is named, or what there is for the platform.

    Args:
        choice: from :func:`choose_kernels`, not a plain form.
        kernels: the operation's.
        bind: makes a function of the operands of a kernel's module.
        plain: a function of the operands, for all other platforms.
        *operands: arrays.
    """
    if isinstance(choice, str):
        return bind(kernels[choice][1])(*operands)
    by_platform = {p: bind(kernels[name][1]) for p, name in choice}
    return jax.lax.platform_dependent(*operands, default=plain, **by_platform)
