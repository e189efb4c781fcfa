"""What tests of pretrained weights compare and refuse."""

import numpy as np
import pytest

from nl_jax.errors import InputError
from nl_jax.pretrained import load_pretrained
from tests.continual.conftest import apply
from tests.continual.pretrained_files import LLAMA

IDS = np.random.default_rng(0).integers(0, 23, 12)


def logits_of(pretrained, ids):
    return np.asarray(read(pretrained, ids[None])[0][0])


def greedy(pretrained, ids, count):
    logits, state = read(pretrained, ids[None])
    found = [int(logits[0, -1].argmax())]
    while len(found) < count:
        token = np.array([[found[-1]]])
        logits, state = read(pretrained, token, state)
        found.append(int(logits[0, -1].argmax()))
    return found


def read(pretrained, tokens, state=None):
    return apply(pretrained.model, pretrained.variables, tokens, state)


def plain_greedy(logits, ids, count):
    ids = list(ids)
    for _ in range(count):
        ids.append(int(logits(np.asarray(ids))[-1].argmax()))
    return ids[-count:]


def check_same(pretrained, logits):
    """Expected ``logits(ids)``; the first and the later tokens."""
    found = logits_of(pretrained, IDS)
    np.testing.assert_allclose(found, logits(IDS), atol=1e-4, rtol=0)
    assert greedy(pretrained, IDS, 6) == plain_greedy(logits, IDS, 6)


MISTRAL = {
    name: value for name, value in LLAMA.items() if name != "attention_bias"
} | {"model_type": "mistral", "head_dim": 6, "sliding_window": 5}
QWEN2 = MISTRAL | {
    "model_type": "qwen2",
    "head_dim": 4,
    "use_sliding_window": False,
    "max_window_layers": 3,
    "rope_scaling": {"type": "linear", "factor": 4.0},
}


def refused(path, words):
    """One line, and nothing was written."""
    folder = path if path.is_dir() else path.parent
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError) as error:
        load_pretrained(path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(folder.rglob("*")) == before
