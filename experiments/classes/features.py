r"""Features of texts, fixed before any text is seen.

The features are not fitted to texts, so nothing leaks from later tasks. A text
becomes a vector of norm 1: either n-grams of words (1-2) and characters (2-5),
hashed, counted as :math:`1 + \log n` and projected at random to the width, or
the embedding of a pretrained encoder (``minilm.py``). Random cosines of it
(Rahimi & Recht 2007) are the features; their products approximate a Gaussian
kernel, in which texts without a common n-gram are :math:`\sqrt 2` apart.

Weakness: the n-grams have no inverse document frequencies, because these would
have to be fitted on the texts of all tasks. This costs a nearest class mean a
few points.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from experiments.classes import minilm

Kind = Literal["ngrams", "minilm"]
"""Kinds of features."""
_BUCKETS = 2**18


def encode(texts: Sequence[str], width: int, kind: Kind) -> np.ndarray:
    """Maps texts to vectors of norm 1, each by its own text alone.

    Args:
        texts: any texts.
        width: of projected n-grams; embeddings have 384.
        kind: n-grams or embeddings.
    """
    return minilm.embed(texts) if kind == "minilm" else _ngrams(texts, width)


class Cosines:
    r"""Random cosines of vectors: ``[N, inputs] -> [N, width]``, float32.

    Rows have a norm of about 1, and their products approximate
    :math:`\exp(-s^2 \|x - y\|^2 / 2)`.

    Args:
        inputs: width of the vectors.
        width: number of cosines.
        scale: :math:`s`, the inverse width of the kernel.
        seed: of frequencies and phases.
    """

    def __init__(self, inputs: int, width: int, scale: float, seed: int = 0):
        rng = np.random.default_rng(seed)
        omega = rng.normal(scale=scale, size=(inputs, width))
        self._omega = omega.astype(np.float32)
        self._phase = rng.uniform(0, 2 * np.pi, width).astype(np.float32)
        self.width = width

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Maps vectors to cosines."""
        waves = np.cos(x @ self._omega + self._phase)
        return waves * np.float32((2 / self.width) ** 0.5)


def _ngrams(texts, width):
    """Returns projected n-grams, ``[N, width]``, every row of norm 1."""
    from scipy import sparse
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.preprocessing import normalize
    from sklearn.random_projection import SparseRandomProjection

    blocks = []
    for analyzer, lengths in (("word", (1, 2)), ("char_wb", (2, 5))):
        counts = HashingVectorizer(
            analyzer=analyzer,
            ngram_range=lengths,
            n_features=_BUCKETS,
            norm=None,
            alternate_sign=False,
        ).transform(texts)
        counts.data = 1 + np.log(counts.data)
        blocks.append(normalize(counts))
    grams = normalize(sparse.hstack(blocks, format="csr"))
    projection = SparseRandomProjection(
        width, dense_output=True, random_state=0
    )
    # Fitting uses only the shape.
    return normalize(projection.fit_transform(grams)).astype(np.float32)
