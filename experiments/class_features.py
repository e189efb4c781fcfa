r"""Features of texts that are fixed before any text is seen.

Nothing is fitted, so that nothing leaks from tasks to come: n-grams of words
(1-2) and characters (2-5) are hashed, counted as :math:`1 + \log n`, projected
at random to the width, and read through random cosines (Rahimi & Recht 2007),
whose products are about a Gaussian kernel. Weak: without inverse document
frequencies, which would have to be fitted on texts of all tasks, a nearest
class mean is a few points worse.
"""

import numpy as np

__all__ = ["make_features"]

_BUCKETS = 2**18


def make_features(texts: list[str], width: int, scale: float) -> np.ndarray:
    r"""Maps texts to ``[N, width]`` float32, every row of norm about 1.

    Args:
        texts: any; no row depends on another.
        width: of the projection and of the cosines.
        scale: of the Gaussian kernel that products are about, in units of
            1 over the distance of texts; those without a common n-gram are
            :math:`\sqrt 2` apart.
    """
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
    x = normalize(projection.fit_transform(grams)).astype(np.float32)
    rng = np.random.default_rng(0)
    omega = rng.normal(scale=scale, size=(width, width)).astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, width).astype(np.float32)
    return np.cos(x @ omega + phase) * np.float32((2 / width) ** 0.5)
