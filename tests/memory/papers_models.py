"""Mixers of the literature, token by token in NumPy.

Written from the papers' formulas, in the papers' layout where one is given.
Nothing of ``nl_jax`` is used but its names of parameters. All take one row,
``[T, D]``; all but the Titans go through complex numbers.
"""

import numpy as np

from tests.memory import papers


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def softmax(x):
    e = np.exp(x - x.real.max())
    return e / e.sum()


def rms(x, eps=1e-6):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def unit(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def conv(x, kernel):
    """y_t = sum_i kernel_i x_{t - width + 1 + i}, zeros before the start."""
    x, width = np.asarray(x), len(kernel)
    out = np.zeros_like(x)
    for t in range(len(x)):
        for i in range(width):
            if t - width + 1 + i >= 0:
                out[t] = out[t] + kernel[i] * x[t - width + 1 + i]
    return out


def project(p, x, name, heads):
    """A projection, its convolution and SiLU: ``[T, H, d]``."""
    y = silu(conv(np.asarray(x) @ p[f"w_{name}"], p[f"conv_{name}"]))
    return y.reshape(len(y), heads, -1)


def last(window, x):
    """What each token of ``x`` sees: itself and those just before it."""
    return [range(max(0, t - window + 1), t + 1) for t in range(len(x))]


def attention(p, x, *, heads, sees):
    """Softmax attention with rotary positions and persistent tokens.

    Token ``t`` sees the tokens in ``sees[t]`` and all persistent ones, which
    stand nowhere: they meet the query unrotated.
    """
    q, k, v = (project(p, x, name, heads) for name in "qkv")
    half = q.shape[-1] // 2
    frequency = 10_000.0 ** (-np.arange(half) / half)

    def turn(a, at):
        a, b = a[:half], a[half:]
        c, s = np.cos(at * frequency), np.sin(at * frequency)
        return np.concatenate([a * c - b * s, a * s + b * c])

    outs = []
    for t, seen in enumerate(sees):
        y = []
        for h in range(heads):
            scores = [turn(q[t, h], t) @ turn(k[s, h], s) for s in seen]
            values = [v[s, h] for s in seen]
            if "persistent_keys" in p:
                scores = [*(p["persistent_keys"][h] @ q[t, h]), *scores]
                values = [*p["persistent_values"][h], *values]
            weights = softmax(np.array(scores) / np.sqrt(2 * half))
            y.append(weights @ np.array(values))
        outs.append(np.concatenate(y) @ p["w_out"])
    return np.array(outs)


def swiglu(p, x):
    h = rms(x) * p["level_1_scale"]
    return (silu(h @ p["level_1_gate"]) * (h @ p["level_1_up"])) @ p[
        "level_1_down"
    ]


def selective_scan(h, x, delta, a, b, c):
    """Mamba, eq. 2 and 4 with the Euler step of B: A_t = exp(delta_t A)."""
    outs = []
    for t in range(len(x)):
        for e in range(x.shape[1]):
            h = h.copy()
            h[e] = np.exp(delta[t, e] * a[e]) * h[e]
            h[e] = h[e] + delta[t, e] * b[t] * x[t, e]
        outs.append(h @ c[t])
    return np.array(outs), h


def mamba(p, x):
    """Mamba, section 3.4: two branches, one of them a gate."""
    u = silu(conv(x @ p["w_in"], p["conv"]))
    n, rank = p["log_rates"].shape[1], p["w_step"].shape[0]
    ports = u @ p["w_ports"]
    step, b, c = ports[:, :rank], ports[:, rank : rank + n], ports[:, -n:]
    delta = np.log(1 + np.exp(step @ p["w_step"] + p["b_step"]))
    h = np.zeros((u.shape[1], n), u.dtype)
    y, h = selective_scan(h, u, delta, -np.exp(p["log_rates"]), b, c)
    y = (y + p["skip"] * u) * silu(x @ p["w_gate"])
    return y @ p["w_out"], h


def samba(block, x, *, heads, window):
    """Samba, figure 1: Mamba, MLP, attention, MLP, each behind its norm."""
    p = block["mixer"]
    x = x + mamba(p["mamba"], rms(x) * block["norm_scale"])[0]
    x = x + swiglu(p["mlp"], x)
    inputs = rms(x) * p["attention_scale"]
    x = x + attention(p["attention"], inputs, heads=heads, sees=last(window, x))
    return x + swiglu(block["cms"], x)


def srwm(w, x):
    """SRWM, eq. 5-8, one head; rows make y, k, q and beta."""
    d, outs = x.shape[1], []
    for t in range(len(x)):
        made = w @ softmax(x[t])
        y, k, q, beta = np.split(made, [d, 2 * d, 3 * d])
        v_bar, v = w @ softmax(k), w @ softmax(q)
        rate = np.repeat(sigmoid(beta), [d, d, d, 4])
        w = w + rate[:, None] * np.outer(v - v_bar, softmax(k))
        outs.append(y)
    return np.array(outs), w


def srwm_layer(p, x, *, heads):
    u = silu(conv(x @ p["w_in"], p["conv"])).reshape(len(x), heads, -1)
    outs, ends = [], []
    for h in range(heads):
        y, w = srwm(p["memory"][h].T, u[:, h])
        outs.append(rms(y, 1e-5) * p["out_scale"][h])
        ends.append(w.T)
    return np.concatenate(outs, -1) @ p["w_out"], np.array(ends)


def neural_memory(p, x, *, heads, chunk):
    """Titans, section 3.1: L2 memory, one hidden layer, read after writing."""
    q, k, v = (project(p, x, name, heads) for name in "qkv")
    q, k = unit(q), unit(k)
    eta, alpha, mu = (
        sigmoid(x @ p[f"w_{name}"] + p[f"b_{name}"])
        for name in ("eta", "alpha", "mu")
    )
    outs, ends = [], []
    for h in range(heads):
        y, end = papers.titans(
            [p["memory_0"][h], p["memory_1"][h]],
            q[:, h],
            k[:, h],
            v[:, h],
            eta[:, h],
            alpha[:, h],
            mu[:, h],
            forward=papers.FORWARDS["mlp"],
            loss=papers.LOSSES["l2"],
            chunk=chunk,
        )
        outs.append(rms(np.array(y), 1e-5) * p["out_scale"][h])
        ends.append(end)
    return np.concatenate(outs, -1) @ p["w_out"], ends


def gate(p, y, m):
    """Titans, section 4.2: norms with learned vectors, then sigma."""
    m = sigmoid(rms(m) * p["memory_scale"])
    return rms(y) * p["attention_scale"] * m


def memory_as_layer(p, x, *, heads, chunk, window):
    """Titans, eq. 29-31: o = SW-Attn(M(x))."""
    m, _ = neural_memory(p["memory"], x, heads=heads, chunk=chunk)
    return attention(p["attention"], m, heads=heads, sees=last(window, x))


def memory_as_gate(p, x, *, heads, chunk, window):
    """Titans, eq. 26-28: o = SW-Attn(x) (x) M(x)."""
    m, _ = neural_memory(p["memory"], x, heads=heads, chunk=chunk)
    y = attention(p["attention"], x, heads=heads, sees=last(window, x))
    return gate(p, y, m)


def memory_as_context(p, x, *, heads, chunk, window):
    """Titans, eq. 21-25, where a token sees no answer to a later one.

    h_t = M_{start}(q_t), y = Attn([persistent, h, x]), o = y (x) M(y).
    """
    q = project(p, x, "recall", heads)
    scale = p["recall_scale"].reshape(heads, -1)
    sequence, sees, y = [], [], []
    for t in range(len(x)):
        if t % chunk == 0:
            begin, weights = 2 * t, first_weights(p["memory"])
            if t:
                _, weights = neural_memory(
                    p["memory"], np.array(y), heads=heads, chunk=chunk
                )
        h = [
            rms(papers.FORWARDS["mlp"](weights[i], unit(q[t, i]))) * scale[i]
            for i in range(heads)
        ]
        sequence += [np.concatenate(h), x[t]]
        sees += [range(begin, 2 * t + 1), range(begin, 2 * t + 2)]
        all_outs = attention(p["attention"], sequence, heads=heads, sees=sees)
        y.append(all_outs[-1])
    m, _ = neural_memory(p["memory"], np.array(y), heads=heads, chunk=chunk)
    return gate(p, np.array(y), m)


def first_weights(p):
    return list(zip(p["memory_0"], p["memory_1"], strict=True))
