"""Files of weights that are refused, each in one line."""

import json

import numpy as np
import pytest

from nl_jax.errors import InputError
from nl_jax.pretrained import load_pretrained
from tests.continual import pretrained_files as files
from tests.continual.pretrained_checks import refused
from tests.continual.pretrained_files import LLAMA, LLAMA3

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
