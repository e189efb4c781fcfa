"""A small vision transformer on scikit-learn's handwritten digits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax


class Attention(nn.Module):
    """Self-attention over all patches, four heads."""

    @nn.compact
    def __call__(self, x):
        """``[B, T, D] -> [B, T, D]``."""
        b, t, d = x.shape
        q, k, v = (
            nn.Dense(d, name=name)(x).reshape(b, t, 4, d // 4)
            for name in ("q", "k", "v")
        )
        y = jax.nn.dot_product_attention(q, k, v)
        return nn.Dense(d, name="o")(y.reshape(b, t, d))


class VisionTransformer(nn.Module):
    """Pre-norm blocks on patches of 2 x 2, and the mean over patches."""

    layers: int
    width: int

    @nn.compact
    def __call__(self, images):
        """``[B, 8, 8] -> [B, 10]`` logits."""
        b = images.shape[0]
        x = images.reshape(b, 4, 2, 4, 2).swapaxes(2, 3).reshape(b, 16, 4)
        x = nn.Dense(self.width, name="patches")(x)
        x = x + self.param(
            "positions", nn.initializers.normal(0.02), (16, self.width)
        )
        for _ in range(self.layers):
            x = x + Attention()(nn.LayerNorm()(x))
            h = nn.Dense(4 * self.width)(nn.LayerNorm()(x))
            x = x + nn.Dense(self.width)(nn.gelu(h))
        return nn.Dense(10, name="head")(nn.LayerNorm()(x).mean(1))


def load():
    """Returns ``{split: (images [N, 8, 8], labels [N])}``, always the same."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = (data.images[order] / 16).astype(np.float32)
    labels = data.target[order].astype(np.int32)
    cuts = {
        "train": (0, 1197),
        "validation": (1197, 1437),
        "test": (1437, None),
    }
    return {
        name: (jnp.asarray(images[slice(*c)]), jnp.asarray(labels[slice(*c)]))
        for name, c in cuts.items()
    }


def make_trainer(make, data, *, layers, width, steps, batch, weight_decay):
    """Returns ``(rate, seed) -> {metric: value}``, compiled once.

    Args:
        make: ``(schedule, weight_decay) -> transformation``.
        data: of :func:`load`.
        layers: of the model.
        width: of the model.
        steps: of training, under a cosine schedule.
        batch: images per step.
        weight_decay: decoupled.
    """
    model = VisionTransformer(layers, width)

    def loss(params, images, labels):
        logits = model.apply(params, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), (logits.argmax(-1) == labels).mean()

    @jax.jit
    def train(rate, seed):
        init, draw = jax.random.split(jax.random.key(seed))
        schedule = optax.cosine_decay_schedule(rate, steps)
        tx = make(schedule, weight_decay)
        images, labels = data["train"]
        params = model.init(init, images[:1])

        def step(carry, rng):
            params, state = carry
            rows = jax.random.choice(rng, len(labels), (batch,), False)
            (value, _), grads = jax.value_and_grad(loss, has_aux=True)(
                params, images[rows], labels[rows]
            )
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        (params, _), curve = jax.lax.scan(
            step,
            (params, tx.init(params)),
            jax.random.split(draw, steps),
        )
        out = {"train_loss": curve[-20:].mean()}
        for split in ("validation", "test"):
            value, accuracy = loss(params, *data[split])
            out |= {f"{split}_loss": value, f"{split}_accuracy": accuracy}
        return out

    return train
