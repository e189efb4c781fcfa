r"""A matrix memory over a sequence that is cut along an axis of the mesh.

Without momentum the recurrence of ``pallas_kernels.delta_memory.delta_scan`` is
linear in the memory: the tokens of one device take :math:`W` to
:math:`A W + B`. Devices find their own :math:`A` and :math:`B` at the same
time, gather those of all, start from what the tokens before theirs have left,
and read. Nobody waits; what this costs in place of a bubble are two more runs
of the recurrence, and :math:`2 d^2` numbers per head from each device.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.delta_memory import delta_scan


def delta_scan_sharded(axis, w, x, g, q, log_alpha, beta, **options):
    """Runs ``delta_scan`` without momentum; to be called in ``shard_map``.

    Args:
        axis: name of the mesh axis along which the tokens are cut, in order.
        w: initial memory, ``[..., d_in, d_out]``, the same on all devices.
        x: this device's keys, ``[..., T, d_in]``; the other arrays are
            likewise as in ``delta_scan``.
        g: what is written, ``[..., T, d_out]``.
        q: queries, ``[..., T, d_in]``.
        log_alpha: logarithm of the retention, ``[..., T]``.
        beta: step sizes, ``[..., T]``, or ``None``.
        **options: keywords of ``delta_scan``.

    Returns:
        ``(o, w)``: outputs of this device's tokens, and the memory after the
        tokens of all devices.
    """

    def run(start, written):
        o, after, _ = delta_scan(
            start, None, x, written, q, log_alpha, beta, **options
        )
        return o, after

    eye = jnp.broadcast_to(
        jnp.eye(x.shape[-1], dtype=w.dtype), (*w.shape[:-2], *x.shape[-1:] * 2)
    )
    _, added = run(jnp.zeros_like(w), g)
    _, kept = run(eye, jnp.zeros_like(x))
    every = jax.lax.all_gather((kept, added), axis)
    starts = [w]
    for kept, added in zip(*every, strict=True):
        starts.append(kept @ starts[-1] + added)
    own = jnp.stack(starts)[jax.lax.axis_index(axis)]
    return run(own, g)[0], starts[-1]
