"""Recurrences of the literature, token by token in NumPy float64.

Each is written from its own paper's formula, in the paper's layout (matrices:
column vectors, state ``[d_v, d_k]``) and with its names. Nothing of ``nl_jax``
is used. All take one head's arrays and return ``(outputs, state)``.
"""

import numpy as np


def linear_attention(s, q, k, v, g):
    """Katharopoulos et al. 2020, eq. 16-20, without the normaliser."""
    outs = []
    for t in range(len(q)):
        s = s + np.outer(v[t], k[t])
        outs.append(s @ q[t])
    return outs, s


def retention(s, q, k, v, g):
    """RetNet, eq. 6: S_n = gamma S_{n-1} + k_n^T v_n."""
    outs, gamma = [], np.exp(g["log_alpha"][0])
    for t in range(len(q)):
        s = gamma * s + np.outer(v[t], k[t])
        outs.append(s @ q[t])
    return outs, s


def gated_linear_attention(s, q, k, v, g):
    """GLA, eq. 3: S_t = Diag(alpha_t) S_{t-1} + k_t^T v_t, rows are keys."""
    outs = []
    for t in range(len(q)):
        s = s * np.exp(g["log_alpha"][t])[None, :] + np.outer(v[t], k[t])
        outs.append(s @ q[t])
    return outs, s


def gated_delta_rule(s, q, k, v, g):
    """Gated DeltaNet, eq. 10: S (alpha (I - beta k k^T)) + beta v k^T."""
    outs, eye = [], np.eye(q.shape[1])
    for t in range(len(q)):
        alpha, beta = np.exp(g["log_alpha"][t]), g["beta"][t]
        s = s @ (alpha * (eye - beta * np.outer(k[t], k[t])))
        s = s + beta * np.outer(v[t], k[t])
        outs.append(s @ q[t])
    return outs, s


def longhorn(s, q, k, v, g):
    """Longhorn, Theorem 3.1: the minimiser of |S - S'|^2 + beta |S k - x|^2."""
    outs, d = [], q.shape[1]
    for t in range(len(q)):
        beta = g["beta"][t]
        # Zero gradient: S (I + beta k k^T) = S' + beta x k^T.
        s = np.linalg.solve(
            np.eye(d) + beta * np.outer(k[t], k[t]),
            (s + beta * np.outer(v[t], k[t])).T,
        ).T
        outs.append(s @ q[t])
    return outs, s


def comba(s, q, k, v, g):
    """Comba: S (alpha - beta~ k k^T) + beta v k^T, o = S (q - d k)."""
    outs, eye = [], np.eye(q.shape[1])
    for t in range(len(q)):
        alpha, beta = np.exp(g["log_alpha"][t]), g["beta"][t]
        erase = g["erase"][0] * beta
        s = s @ (alpha * eye - erase * np.outer(k[t], k[t]))
        s = s + beta * np.outer(v[t], k[t])
        outs.append(s @ (q[t] - g["feedback"][0, 0] * k[t]))
    return outs, s


def oja(s, q, k, v, g):
    """NL, eq. 67, with decay: M - eta (v v^T M - v k^T), M = alpha M'."""
    outs = []
    for t in range(len(q)):
        s = np.exp(g["log_alpha"][t]) * s
        grad = np.outer(v[t], v[t]) @ s - np.outer(v[t], k[t])
        s = s - g["beta"][t] * grad
        outs.append(s @ q[t])
    return outs, s


def rwkv7(s, q, k, v, g):
    """RWKV-7, eq. 16: S (diag(w) - kappa^T (a * kappa)) + v^T k~."""
    outs = []
    for t in range(len(q)):
        kappa, a = g["removal"][t], g["rate"][t]
        w = np.exp(g["log_alpha"][t])
        s = s @ (np.diag(w) - np.outer(kappa, a * kappa))
        s = s + np.outer(v[t], k[t])
        outs.append(s @ q[t])
    return outs, s


def layer_norm(x):
    x = x - x.mean()
    return x / np.sqrt((x * x).mean() + 1e-6)


def gelu(a):
    return 0.5 * a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))


FORWARDS = {
    "linear": lambda w, x: x @ w[0],
    "mlp": lambda w, x: x + gelu(x @ w[0]) @ w[1],
    "linear_norm": lambda w, x: x + layer_norm(x @ w[0]),
    "mlp_norm": lambda w, x: x + layer_norm(gelu(x @ w[0]) @ w[1]),
}


def _norm(x):
    return np.sqrt((x * x).sum())


LOSSES = {
    "l2": lambda y, v: 0.5 * ((y - v) ** 2).sum(),
    "dot_product": lambda y, v: -(y * v).sum(),
    "huber": lambda y, v: (
        0.5 * ((y - v) ** 2).sum()
        if _norm(y - v).real <= 1
        else _norm(y - v) - 0.5
    ),
    "lp": lambda y, v: (((y - v) ** 3) * np.sign((y - v).real)).sum() / 3,
}


def gradient(forward, loss, weights, k, v):
    """By complex steps: exact, and nobody's derivation but the formula's."""
    out = []
    for index, w in enumerate(weights):
        g = np.zeros_like(w)
        for at in np.ndindex(w.shape):
            moved = [a.astype(complex) for a in weights]
            moved[index][at] += 1e-30j
            g[at] = loss(forward(moved, k), v).imag / 1e-30
        out.append(g)
    return out


def titans(weights, q, k, v, eta, alpha, mu, *, forward, loss, chunk):
    """Titans, eq. 13-14 and section 3.2: gradients at the chunk's start.

    S = mu S - eta grad, W = alpha W + S, read after the write.
    """
    momentum, outs = [np.zeros_like(w) for w in weights], []
    for t in range(len(q)):
        if t % chunk == 0:
            start = weights
        grads = gradient(forward, loss, start, k[t], v[t])
        momentum = [
            mu[t] * s - eta[t] * g for s, g in zip(momentum, grads, strict=True)
        ]
        weights = [
            alpha[t] * w + s for w, s in zip(weights, momentum, strict=True)
        ]
        outs.append(forward(weights, q[t]))
    return outs, weights


def ttt(weights, q, k, v, eta, *, forward, loss, chunk):
    """TTT, section 2.5 and its code: W_i = W_0 - (1 / i) sum_j eta_j grad_j."""
    outs = []
    for t in range(len(q)):
        i = t % chunk + 1
        if i == 1:
            start, total = weights, [np.zeros_like(w) for w in weights]
        grads = gradient(forward, loss, start, k[t], v[t])
        total = [a + eta[t] * g for a, g in zip(total, grads, strict=True)]
        weights = [w - a / i for w, a in zip(start, total, strict=True)]
        outs.append(forward(weights, q[t]))
    return outs, weights
