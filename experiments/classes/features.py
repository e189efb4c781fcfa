r"""Features of texts that are fixed before any text is seen.

Nothing is fitted on them, so that nothing leaks from tasks to come. A text is a
vector of norm 1: either n-grams of words (1-2) and characters (2-5), hashed,
counted as :math:`1 + \log n` and projected at random to the width, or the
embedding of a pretrained encoder (``minilm.py``). It is read through random
cosines (Rahimi & Recht 2007), whose products are about a Gaussian kernel. Weak:
n-grams without inverse document frequencies, which would have to be fitted on
texts of all tasks; a nearest class mean is a few points worse for it.
"""

from typing import Literal

import numpy as np

from experiments.classes import minilm

Kind = Literal["ngrams", "minilm"]
"""What is read of a text."""
_BUCKETS = 2**18


def make_features(
    texts: list[str], width: int, scale: float, kind: Kind = "ngrams"
) -> np.ndarray:
    r"""Maps texts to ``[N, width]`` float32, every row of norm about 1.

    Args:
        texts: any; no row depends on another.
        width: of the projection and of the cosines.
        scale: of the Gaussian kernel that products are about, in units of
            1 over the distance of texts; those without a common n-gram are
            :math:`\sqrt 2` apart.
        kind: what is read of a text.
    """
    x = minilm.embed(texts) if kind == "minilm" else _ngrams(texts, width)
    rng = np.random.default_rng(0)
    omega = rng.normal(scale=scale, size=(x.shape[1], width))
    phase = rng.uniform(0, 2 * np.pi, width).astype(np.float32)
    waves = np.cos(x @ omega.astype(np.float32) + phase)
    return waves * np.float32((2 / width) ** 0.5)


def _ngrams(texts, width):
    """Projected n-grams, ``[N, width]``, every row of norm 1."""
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
    # Fitting looks at nothing but the shape.
    return normalize(projection.fit_transform(grams)).astype(np.float32)
