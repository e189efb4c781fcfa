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


def silu(a):
    return a / (1 + np.exp(-a))


def gelu(a):
    return 0.5 * a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))


FORWARDS = {
    "linear": lambda w, x: x @ w[0],
    "mlp": lambda w, x: x + gelu(x @ w[0]) @ w[1],
    "linear_norm": lambda w, x: x + layer_norm(x @ w[0]),
    "mlp_norm": lambda w, x: x + layer_norm(gelu(x @ w[0]) @ w[1]),
    "mlp_3": lambda w, x: x + gelu(gelu(x @ w[0]) @ w[1]) @ w[2],
    "gated_mlp": lambda w, x: x + (silu(x @ w[0]) * (x @ w[1])) @ w[2],
    "polynomial_linear": lambda w, x: powers(x) @ w[0],
    "polynomial_mlp": lambda w, x: x + gelu(powers(x) @ w[0]) @ w[1],
    "monomials": lambda w, x: monomials(x) @ w[0],
}


def powers(x):
    """Each channel's powers; at width d the second is sqrt(d / 2) x^2."""
    return np.concatenate([x, np.sqrt(len(x) / 2) * x**2])


def monomials(x):
    """ATLAS, section 3: all x^beta of degree 1 and 2, over sqrt(beta!)."""
    d = len(x)
    second = [
        x[i] * x[j] / (np.sqrt(2) if i == j else 1)
        for i in range(d)
        for j in range(i, d)
    ]
    return np.array([*x, *second])


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


def huber_of(threshold):
    """MIRAS, eq. 25: quadratic up to the threshold of the token."""

    def loss(y, v):
        size = _norm(y - v)
        if size.real <= threshold:
            return 0.5 * size**2
        return threshold * (size - 0.5 * threshold)

    return loss


def gradient(forward, loss, weights, k, v):
    """By complex steps: exact, and nobody's derivation but the formula's."""
    out = []
    for index, w in enumerate(weights):
        g = np.zeros_like(w)
        for at in np.ndindex(w.shape):
            moved = [a.astype(np.result_type(a, 1j)) for a in weights]
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


def moneta(a, grad, eta, alpha):
    """MIRAS, eq. 24: A = alpha A - eta grad; the weights follow from it."""
    return alpha * a - eta * grad


def moneta_weights(a, q=4):
    return a / ((np.abs(a) ** q).sum() ** (1 / q)) ** (q - 2)


def memora(w, grad, eta, alpha):
    """MIRAS, eq. 27: c Softmax(alpha log W - eta' grad), by output.

    Here eta' is sqrt(d_in) eta.
    """
    return simplex(alpha * np.log(w) / np.sqrt(len(w)) - eta * grad)


def simplex(a):
    root = np.sqrt(len(a))
    e = np.e ** (root * a)
    return root * e / e.sum(0)


def weight_decay(w, grad, eta, alpha, strength=0.01):
    """W = argmin <grad, W> + |W - alpha W'|^2 / (2 eta) + strength |W|^2/2."""
    return (alpha * w - eta * grad) / (1 + eta * strength)


def elastic(w, grad, eta, alpha, sparsity=0.001, strength=0.01):
    """The same with sparsity |W|_1: soft threshold (MIRAS, section 5.2)."""
    w = alpha * w - eta * grad
    w = np.where(np.abs(w) > eta * sparsity, w - np.sign(w) * eta * sparsity, 0)
    return w / (1 + eta * strength)


def by_channel(w, grad, eta, alpha):
    """A share per channel of the key, their mean in the log further in."""
    if len(alpha) != len(w):
        alpha = np.full(len(w), np.exp(np.log(alpha).mean()))
    return alpha[:, None] * w - eta * grad


def slope(f, h=1e-5):
    """f'(0) by differences; to about 12 digits in NumPy's long double."""
    near, far = f(h) - f(-h), f(2 * h) - f(-2 * h)
    return (8 * near - far) / (12 * h)


def miras(
    kept,
    q,
    k,
    v,
    eta,
    alpha,
    threshold,
    *,
    forward,
    loss,
    chunk,
    update,
    weights_of=lambda kept: kept,
):
    """Any retention: what is kept moves by ``update``, read after it."""
    outs = []
    for t in range(len(q)):
        if t % chunk == 0:
            start = [weights_of(a) for a in kept]
        score = huber_of(threshold[t]) if loss == "huber" else LOSSES[loss]
        grads = gradient(forward, score, start, k[t], v[t])
        kept = [
            update(a, g, eta[t], alpha[t])
            for a, g in zip(kept, grads, strict=True)
        ]
        outs.append(forward([weights_of(a) for a in kept], q[t]))
    return outs, kept


def omega(
    weights,
    q,
    k,
    v,
    eta,
    alpha,
    mu,
    gamma,
    *,
    forward,
    loss,
    chunk,
    window,
    muon,
):
    """ATLAS: eq. 9-11 (OmegaNet, with momentum) and eq. 32-33 (ATLAS).

    S = theta S + sum over the window of gamma grad; M = alpha M - eta S, or
    M = alpha M - eta NewtonSchulz(S).
    """
    momentum, outs = [np.zeros_like(w) for w in weights], []
    for t in range(len(q)):
        if t % chunk == 0:
            start = weights
        total = [np.zeros_like(w) for w in weights]
        for i in range(max(0, t - window + 1), t + 1):
            grads = gradient(forward, loss, start, k[i], v[i])
            total = [
                a + gamma[i] * g for a, g in zip(total, grads, strict=True)
            ]
        if muon:
            momentum = [
                mu[t] * s + g for s, g in zip(momentum, total, strict=True)
            ]
            steps = [eta[t] * newton_schulz(s) for s in momentum]
        else:
            momentum = [
                mu[t] * s + eta[t] * g
                for s, g in zip(momentum, total, strict=True)
            ]
            steps = momentum
        weights = [
            alpha[t] * w - s for w, s in zip(weights, steps, strict=True)
        ]
        outs.append(forward(weights, q[t]))
    return outs, weights


def newton_schulz(x):
    """Five steps of Muon's quintic."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x / (np.sqrt((x * x).sum()) + 1e-8)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
