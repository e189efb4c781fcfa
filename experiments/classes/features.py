r"""Features of texts, fixed before any text is seen.

The features are not fitted to texts, so nothing leaks from later tasks. A text
becomes a vector of norm 1: either n-grams of words (1-2) and characters (2-5),
hashed, counted as :math:`1 + \log n` and projected at random to the width, or
the embedding of a pretrained encoder (``minilm.py``). Random cosines of it
(Rahimi & Recht 2007) are the features; their products approximate a Gaussian
kernel.

Weakness: the n-grams have no inverse document frequencies, because these would
have to be fitted on the texts of all tasks. This costs a nearest class mean a
few points.
"""

from typing import Literal

import numpy as np

from experiments.classes import minilm

Kind = Literal["ngrams", "minilm"]
"""Kinds of features."""
_BUCKETS = 2**18


def make_features(
    texts: list[str], width: int, scale: float, kind: Kind = "ngrams"
) -> np.ndarray:
    r"""Maps texts to ``[N, width]`` float32, every row of norm about 1.

    Args:
        texts: any texts; each row depends on its own text alone.
        width: of the projection and of the cosines.
        scale: of the approximated Gaussian kernel, in units of the inverse
            distance of texts; texts without a common n-gram are
            :math:`\sqrt 2` apart.
        kind: n-grams or embeddings.
    """
    x = minilm.embed(texts) if kind == "minilm" else _ngrams(texts, width)
    rng = np.random.default_rng(0)
    omega = rng.normal(scale=scale, size=(x.shape[1], width))
    phase = rng.uniform(0, 2 * np.pi, width).astype(np.float32)
    waves = np.cos(x @ omega.astype(np.float32) + phase)
    return waves * np.float32((2 / width) ** 0.5)


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
