"""Tokenizers lose nothing, whatever their JSON asks for."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax.data import (
    BPETokenizer,
    ByteTokenizer,
    DataConfig,
    from_json,
    load_corpus,
)
from nl_jax.errors import InputError

TEXT = "naïve — 日本 \t\n words words words"
BPE = BPETokenizer.train(TEXT.encode(), 270)
LEVEL = BPE.to_json()["model"]["pre_tokenizer"]
SPACE = "Ġ"
"""How byte-level BPE shows a space."""


def changed(part=None, **fields):
    """Returns the tokenizer's JSON with fields changed, by default on top."""
    model = json.loads(json.dumps(BPE.to_json()["model"]))
    (model if part is None else model[part]).update(fields)
    return json.dumps(model)


def added(content, **fields):
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    token = {"id": BPE.vocab_size, "content": content}
    return [token | dict.fromkeys(flags, False) | fields]


def template(special):
    piece = [{"SpecialToken": {"id": special, "type_id": 0}}]
    sequence = [{"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "type": "TemplateProcessing",
        "single": piece + sequence,
        "pair": piece + sequence + [{"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            special: {"id": special, "ids": [0], "tokens": [special]}
        },
    }


def test_bytes():
    tokenizer = from_json(ByteTokenizer().to_json())
    assert tokenizer.decode(tokenizer.encode(b"\x00\xff")) == b"\x00\xff"
    assert tokenizer.encode("é").tolist() == [0xC3, 0xA9]


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60) | st.text(max_size=30).map(str.encode))
def test_bpe_spells_everything(text):
    tokens = BPE.encode(text)
    assert tokens.dtype == np.int32
    assert BPE.decode(tokens) == text
    assert BPE.byte_lengths[tokens].sum() == len(text)


def test_bpe_compresses_what_it_was_trained_on():
    assert len(BPE.encode(TEXT)) < len(TEXT.encode())


def test_bpe_is_the_same_every_time():
    text = load_corpus(DataConfig()).train[:50_000]
    first = BPETokenizer.train(text, 300).to_json()
    assert BPETokenizer.train(text, 300).to_json() == first


def test_text_may_be_str_or_bytes():
    np.testing.assert_array_equal(BPE.encode(TEXT), BPE.encode(TEXT.encode()))
    assert BPE.encode("").tolist() == BPE.encode(b"").tolist() == []
    # As Python reads the byte 0xff of a command line.
    assert BPE.decode(BPE.encode("a\udcff")) == b"a\xff"
    for tokenizer in (BPE, ByteTokenizer()):
        with pytest.raises(InputError, match=r"surrogate.*at character 1"):
            tokenizer.encode("a\ud800")


def test_a_saved_tokenizer_has_the_same_hash():
    saved = json.loads(json.dumps(BPE.to_json()))
    again = from_json(saved)
    assert again.to_json() == BPE.to_json()
    np.testing.assert_array_equal(again.encode(TEXT), BPE.encode(TEXT))
    # The order of fields and the layout of the file do not matter.
    model = dict(reversed(saved["model"].items()))
    spaced = BPETokenizer(json.dumps(model, indent=2))
    assert spaced.to_json()["hash"] == saved["hash"]
    other = BPETokenizer.train(TEXT.encode(), 269)
    assert other.to_json()["hash"] != saved["hash"]


@pytest.mark.parametrize(
    "model",
    [
        changed(
            truncation={
                "max_length": 3,
                "strategy": "LongestFirst",
                "stride": 0,
                "direction": "Right",
            }
        ),
        changed(
            padding={
                "strategy": {"Fixed": 99},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "!",
            }
        ),
        changed(post_processor=template("!")),
        changed("pre_tokenizer", add_prefix_space=True),
        changed("model", dropout=0.5),
        changed(normalizer={"type": "NFC"}),
    ],
    ids=["truncation", "padding", "bos", "prefix_space", "dropout", "nfc"],
)
def test_what_would_change_text_is_switched_off(model):
    tokenizer = BPETokenizer(model)
    for text in ("words words", "Words e\u0301 \ufb01"):
        ids = tokenizer.encode(text)
        np.testing.assert_array_equal(ids, BPE.encode(text))
        both = np.concatenate([ids, tokenizer.encode(" words")])
        assert tokenizer.decode(both) == (text + " words").encode()
    assert tokenizer.encode(b"").tolist() == []


def test_splits_of_other_families_are_kept():
    """Digits one by one, words with the space before them, as in Llama 3."""
    split = {"pattern": {"Regex": " ?\\p{L}+"}, "behavior": "Isolated"}
    steps = [
        {"type": "Digits", "individual_digits": True},
        {"type": "Split", "invert": False, **split},
        LEVEL | {"use_regex": False, "add_prefix_space": True},
    ]
    sequence = {"type": "Sequence", "pretokenizers": steps}
    words = BPETokenizer.train(b"12 12 12 words", 270)
    model = words.to_json()["model"]
    tokenizer = BPETokenizer(json.dumps(model | {"pre_tokenizer": sequence}))
    text = "words 12 12, words"
    spelled = [tokenizer.decode([i]) for i in tokenizer.encode(text)]
    assert b"".join(spelled) == text.encode()
    assert b"1" in spelled and b"12" not in spelled
    assert b" words" in spelled or b"words" in spelled
    assert b"12" in [words.decode([i]) for i in words.encode("12")]


def without(*shown):
    vocab = BPE.to_json()["model"]["model"]["vocab"]
    kept = {name: i for name, i in vocab.items() if name not in shown}
    return changed("model", vocab=kept, merges=[])


def shared_id(token, taken):
    vocab = BPE.to_json()["model"]["model"]["vocab"]
    return changed("model", vocab=vocab | {token: taken})


SEQUENCE = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
SPLIT = {"type": "Split", "pattern": {"String": "x"}, "invert": False}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (changed(normalizer={"type": "Lowercase"}), "normalizer Lowercase"),
        (
            changed(
                normalizer=SEQUENCE
                | {"normalizers": [{"type": "NFC"}, {"type": "StripAccents"}]}
            ),
            "normalizer StripAccents",
        ),
        (
            changed(normalizer={"type": "Prepend", "prepend": "_"}),
            "normalizer Prepend",
        ),
        (changed(pre_tokenizer={"type": "Whitespace"}), "not a byte-level"),
        (changed(pre_tokenizer=None), "not a byte-level"),
        (
            changed(
                pre_tokenizer={
                    "type": "Sequence",
                    "pretokenizers": [SPLIT | {"behavior": "Removed"}, LEVEL],
                }
            ),
            "pre_tokenizer Split may change text",
        ),
        (
            changed(
                pre_tokenizer={
                    "type": "Sequence",
                    "pretokenizers": [{"type": "WhitespaceSplit"}, LEVEL],
                }
            ),
            "pre_tokenizer WhitespaceSplit",
        ),
        (changed("model", end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (without("a", "é", SPACE), r"3 of the bytes.*0x61, 0xe9, 0x20"),
        (
            changed(added_tokens=added("<s>", id=999)),
            "'<s>' cannot have the id 999",
        ),
        (changed(added_tokens=added("é", id=165)), "not stand for bytes"),
        (shared_id("wo", 5), r"tokens '.+' and '.+' share the id 5"),
        (changed(pre_tokenizer=5), "damaged"),
        (changed(model={"type": "BPE", "vocab": 3}), "byte-level"),
        ("{", "damaged"),
        ("[]", "damaged"),
    ],
)
def test_what_changes_text_is_refused(model, words):
    with pytest.raises(InputError, match=words) as error:
        BPETokenizer(model)
    assert "\n" not in str(error.value)


def test_a_byte_without_a_token_is_refused_where_it_occurs():
    """Some vocabularies lack control characters, which text rarely has."""
    tokenizer = BPETokenizer(without("Ą"))  # Shows the byte 4.
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT.encode()
    with pytest.raises(InputError, match="no token for the byte 0x04"):
        tokenizer.encode(b"a\x04")


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("content", ["<|end|>", "日本 ", "éé", "\n\n"])
def test_added_tokens_spell_themselves(content, special):
    """Bytes of special ones, such as BOS, are not counted as text."""
    fields = {"lstrip": True, "rstrip": True, "special": special}
    tokenizer = BPETokenizer(changed(added_tokens=added(content, **fields)))
    assert tokenizer.vocab_size == BPE.vocab_size + 1
    ids = tokenizer.encode(f"words  {content}  words")
    assert ids.tolist().count(BPE.vocab_size) == 1
    assert tokenizer.decode([BPE.vocab_size]) == content.encode()
    assert tokenizer.decode(ids) == f"words  {content}  words".encode()
    length = 0 if special else len(content.encode())
    assert tokenizer.byte_lengths[BPE.vocab_size] == length


def test_unknown_ids_are_question_marks():
    assert BPE.decode([-1, BPE.vocab_size]) == b"??"
    assert ByteTokenizer().decode([-1, 65, 256]) == b"?A?"


def test_ids_may_have_gaps():
    tokenizer = BPETokenizer(changed("model", vocab=vocab_with_gap()))
    assert tokenizer.vocab_size == BPE.vocab_size + 5
    assert tokenizer.decode([BPE.vocab_size, BPE.vocab_size + 4]) == b"?zz"
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT.encode()


def vocab_with_gap():
    vocab = BPE.to_json()["model"]["model"]["vocab"]
    return vocab | {"zz": BPE.vocab_size + 4}


def test_a_file(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(BPE.to_json()["model"], indent=1), "utf-8")
    assert BPETokenizer.from_file(path).to_json() == BPE.to_json()
    path.write_text("\ufeff" + path.read_text())
    assert BPETokenizer.from_file(path).to_json() == BPE.to_json()
    with pytest.raises(InputError, match="cannot read the tokenizer nowhere"):
        BPETokenizer.from_file("nowhere.json")
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="cannot read the tokenizer"):
        BPETokenizer.from_file(path)
    path.write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer.json: .* is damaged"):
        BPETokenizer.from_file(path)
