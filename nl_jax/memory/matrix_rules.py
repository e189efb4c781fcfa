r"""Matrix memories of the literature, as special cases of two scans.

Each rule is a pure function ``(state, q, k, v, gates, **options) -> (o,
state)`` on sequences ``[..., T, d]`` of heads, exact at every token for any
chunk size, and reads after the write. In row vectors, with :math:`W`
``[d, d]``:

- ``hebbian``, :math:`\alpha W + k^\top v`: linear attention (2006.16236),
  RetNet (2307.08621), GLA (2312.06635);
- ``delta``, :math:`\alpha (W - \beta\, k^\top k W) + \beta k^\top v`: DeltaNet
  (2406.06484), gated DeltaNet (2412.06464);
- ``longhorn``, delta with :math:`\beta / (1 + \beta \|k\|^2)` (2407.14207);
- ``oja``, :math:`\alpha (W - \beta\, W v^\top v) + \beta k^\top v` (arXiv
  2512.24695, eq. 67);
- ``comba``, :math:`\alpha W - \tilde\beta\, k^\top k W + \beta k^\top v`, read
  at :math:`q - d k` (2506.02475);
- ``rwkv7``, :math:`\operatorname{diag}(\alpha) W - (a \hat k)^\top \hat k W +
  \tilde k^\top v` (2503.14456).

Their objectives (attentional bias, arXiv 2504.13173) are the dot product for
hebbian; L2 for delta, comba and rwkv7; L2 solved exactly for longhorn;
:math:`-2 \langle k W, v \rangle + \|v W^\top\|^2` for oja.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from nl_jax.memory.diagonal import diagonal_scan
from pallas_kernels.delta_memory import delta_scan


@dataclasses.dataclass(frozen=True)
class MatrixRule:
    """A matrix memory's recurrence.

    Attributes:
        name: name in configurations.
        objective: the objective's name in the level table.
        scan: ``(state, q, k, v, gates, *, resets=None, **options) -> (o,
            state)``; ``resets`` and the options, ``chunk_size`` and
            ``implementation``, are those of ``delta_scan``. Padding has zeros
            for k, v and all gates of a token, and must change nothing.
        gates: keys required in ``gates`` besides ``log_alpha``, each
            ``[..., T]`` unless the rule says otherwise.
        memories: matrices per head.
        decays: supported kinds of ``log_alpha``, see
            ``MatrixMemoryConfig.decay``.
        unit_values: whether values must have length 1, because the rule erases
            along them.
    """

    name: str
    objective: str
    scan: Callable[..., tuple[jax.Array, jax.Array]]
    gates: tuple[str, ...] = ()
    memories: int = 1
    decays: tuple[str, ...] = ("none", "fixed", "scalar")
    unit_values: bool = False

    def init(self, lead: tuple[int, ...], width: int) -> jax.Array:
        """Returns empty memories ``[*lead, memories, d, d]``."""
        return jnp.zeros((*lead, self.memories, width, width))


def _one(scan):
    """Adapts a rule of a single matrix to states with an axis of memories."""

    def run(state, *args, resets=None, **options):
        o, w = scan(state[..., 0, :, :], *args, resets=resets, **options)
        return o, w[..., None, :, :]

    return run


def _hebbian(w, q, k, v, gates, **options):
    log_alpha = gates["log_alpha"]
    if log_alpha.ndim == k.ndim:
        return diagonal_scan(w, k, v, q, log_alpha, resets=options["resets"])
    o, w, _ = delta_scan(
        w, None, k, v, q, log_alpha, None, read="after", **options
    )
    return o, w


def _erasing(w, q, k, v, log_alpha, erase, write, **options):
    v = v * write[..., None].astype(v.dtype)
    o, w, _ = delta_scan(
        w, None, k, v, q, log_alpha, erase, read="after", **options
    )
    return o, w


def _delta(w, q, k, v, gates, **options):
    log_alpha, beta = gates["log_alpha"], gates["beta"]
    erase = beta * jnp.exp(log_alpha)
    return _erasing(w, q, k, v, log_alpha, erase, beta, **options)


def _longhorn(w, q, k, v, gates, **options):
    size = jnp.square(k.astype(w.dtype)).sum(-1)
    beta = gates["beta"] / (1 + gates["beta"] * size)
    return _delta(w, q, k, v, gates | {"beta": beta}, **options)


def _comba(w, q, k, v, gates, **options):
    q = q - gates["feedback"].astype(q.dtype) * k
    log_alpha, beta = gates["log_alpha"], gates["beta"]
    erase = beta * gates["erase"]
    return _erasing(w, q, k, v, log_alpha, erase, beta, **options)


def _oja(state, q, k, v, gates, *, resets=None, **options):
    """The transposed delta rule, with keys and values exchanged.

    That memory's writes, ``beta (k - v W^T)``, are the keys under which a plain
    memory stores the values; the second scan reads from the latter.
    """
    log_alpha, beta = gates["log_alpha"], gates["beta"]
    options["resets"] = resets
    w = state[..., 0, :, :]
    erase = beta * jnp.exp(log_alpha)
    keys = beta[..., None].astype(k.dtype) * k
    held, _, _ = delta_scan(
        w.mT, None, v, keys, v, log_alpha, erase, read="before", **options
    )
    keys = keys - erase[..., None].astype(k.dtype) * held
    o, w, _ = delta_scan(
        w, None, keys, v, q, log_alpha, None, read="after", **options
    )
    return o, w[..., None, :, :]


def _rwkv7(w, q, k, v, gates, **options):
    removal, rate = gates["removal"], gates["rate"]
    return diagonal_scan(
        w,
        k,
        v,
        q,
        gates["log_alpha"],
        removal,
        removal * rate,
        resets=options["resets"],
    )


MATRIX_RULES = {
    rule.name: rule
    for rule in (
        MatrixRule(
            "hebbian",
            "dot product",
            _one(_hebbian),
            decays=("none", "fixed", "scalar", "channel"),
        ),
        MatrixRule("delta", "l2", _one(_delta), ("beta",)),
        MatrixRule("longhorn", "l2, proximal", _one(_longhorn), ("beta",)),
        MatrixRule("oja", "Oja's", _oja, ("beta",), unit_values=True),
        MatrixRule("comba", "l2", _one(_comba), ("beta", "erase", "feedback")),
        MatrixRule(
            "rwkv7",
            "l2",
            _one(_rwkv7),
            ("removal", "rate"),
            decays=("channel",),
        ),
    )
}
