"""Kernels of other libraries for the delta rule, if they are installed.

Without momentum and with reads after the write, ``delta_scan`` computes

    chunk_gated_delta_rule(q, k, v alpha, log alpha, eta / alpha, scale=1)

where ``k`` is our ``x``, ``eta`` our ``beta`` and ``eta v`` our ``g``. The axes
of the other libraries are ``[batch, tokens, heads, width]``.
"""

import importlib
import importlib.metadata
import os

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kernels.case import with_gradients
from experiments.kernels.timing import chained

# fla would call FlashQLA if that is installed; the baseline is Triton.
os.environ.setdefault("FLA_FLASH_QLA", "0")


def why_not(name: str, case) -> str | None:
    """Returns the reason why a peer cannot run a case, or ``None``."""
    arguments = jax.eval_shape(case.draw, jax.random.key(0))
    if "log_mu" in arguments:
        return "it has no momentum"
    for module in _MODULES[name]:
        try:
            importlib.import_module(module)
        except ImportError as error:
            return f"it is not installed: {error}"
    return None


def versions() -> dict[str, str]:
    """Returns the versions of installed packages that affect a ratio."""
    found = {}
    for name in ("torch", "triton", "fla-core", "jax-linear-attention"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def to_theirs(arrays):
    """Converts our arrays to ``q, k, v alpha, log alpha, eta / alpha``.

    The axes are those of the other libraries.

    Example:
        >>> one = jnp.ones((1, 1, 1))
        >>> arrays = dict.fromkeys(("x", "q", "g"), jnp.ones((1, 1, 1, 1)))
        >>> arrays |= {"log_alpha": jnp.log(one / 2), "beta": one / 4}
        >>> *_, v, log_alpha, beta = to_theirs(arrays)
        >>> v.item(), beta.item()  # v is 4, halved; 1/4 over 1/2
        (2.0, 0.5)
    """
    beta = arrays["beta"] / jnp.exp(arrays["log_alpha"])
    v = (arrays["g"] / beta[..., None]).astype(arrays["g"].dtype)
    theirs = arrays["q"], arrays["x"], v, arrays["log_alpha"], beta
    return tuple(jnp.swapaxes(value, 1, 2) for value in theirs)


def truth(case):
    """Returns the correct results as a function of a peer's arguments."""

    def function(theirs):
        q, k, v, log_alpha, beta = (
            jnp.swapaxes(value, 1, 2).astype(jnp.float32) for value in theirs
        )
        arrays = {
            "w": jnp.zeros((*k.shape[:2], k.shape[-1], v.shape[-1])),
            "x": k,
            "g": beta[..., None] * v,
            "q": q,
            "log_alpha": log_alpha,
            "beta": beta * jnp.exp(log_alpha),
        }
        return jnp.swapaxes(case.truth(arrays)[0], 1, 2)

    return function


class _Fla:
    """Runs fla eagerly, the way it is used."""

    def __init__(self, program):
        self.gradients = program != "forward"

    def _tensors(self, theirs):
        import torch

        def tensor(value):
            half = value.dtype == jnp.bfloat16
            # Through NumPy in float32: it has no bfloat16 that both know.
            plain = torch.from_numpy(np.array(value, np.float32)).to(
                device="cuda", dtype=torch.bfloat16 if half else torch.float32
            )
            return plain.requires_grad_(self.gradients)

        return [tensor(value) for value in theirs]

    def _call(self, q, k, v, log_alpha, beta):
        import torch
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule

        o, _ = chunk_gated_delta_rule(
            q, k, v, g=log_alpha, beta=beta, scale=1.0
        )
        if not self.gradients:
            return o
        inputs = q, k, v, log_alpha, beta
        return o.detach(), (torch.autograd.grad(o, inputs, o.detach()),)

    def results(self, theirs):
        found = self._call(*self._tensors(theirs))
        return jax.tree.map(lambda v: v.float().cpu().numpy(), found)

    def timed(self, sets, calls):
        import torch

        inputs = [self._tensors(theirs) for theirs in sets]
        count = -(-calls // len(inputs)) * len(inputs)

        def run():
            for call in range(count):
                self._call(*inputs[call % len(inputs)])
            torch.cuda.synchronize()

        run()
        return run, count


class _JaxLinearAttention:
    """Calls the kernels by name, so that they cannot fall back."""

    def __init__(self, program):
        gradients = program != "forward"
        call = self._call
        self._function = with_gradients(call) if gradients else call

    def _call(self, theirs):
        from jla.ops import linear_attention

        q, k, v, log_alpha, beta = theirs
        options = {"g": log_alpha, "beta": beta, "scale": 1.0}
        return linear_attention(
            "gated_deltanet", q, k, v, impl="mosaic_gpu", **options
        )[0]

    def results(self, theirs):
        return jax.jit(self._function)(theirs)

    def timed(self, sets, calls):
        return chained(self._function, sets, calls)


PEERS = {"fla": _Fla, "jax-linear-attention": _JaxLinearAttention}
"""Classes by name, constructed from a program. ``results`` returns the results
of one set of arguments; ``timed`` returns a function that runs all calls, and
their number, see :func:`chained`."""
_MODULES = {
    "fla": ("torch", "fla.ops.gated_delta_rule"),
    "jax-linear-attention": ("jla.ops",),
}
