"""Prepared corpora that are not as they were: one line says what is wrong."""

import json
import shutil

import numpy as np
import pytest

from experiments.corpora import prepare_text
from experiments.shared import cli
from nl_jax.data import (
    ByteTokenizer,
    DataConfig,
    load_corpus,
    open_corpora,
    open_prepared,
)
from nl_jax.data.prepared import is_prepared
from nl_jax.errors import InputError
from tests.experiments.test_prepare_text import share_of

TEXTS = [f"Text {i}: " + "some words. " * (i % 7) for i in range(60)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A corpus of bytes and one of BPE tokens; not to be changed."""
    folder = tmp_path_factory.mktemp("prepared")
    path = folder / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": t}) for t in TEXTS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["prepare_text"])
        for name in ("byte", "bpe"):
            flags = {
                "input": path,
                "output": folder / name,
                "tokenizer": name,
                "bpe_vocab_size": 280,
                "held_out": 0.3,
                "shards": 2,
                "processes": 1,
            }
            cli.run(prepare_text, [f"--{n}={v}" for n, v in flags.items()])
    return folder


@pytest.fixture
def copies(prepared, tmp_path):
    """Copies that may be damaged."""
    for name in ("byte", "bpe"):
        shutil.copytree(prepared / name, tmp_path / name)
    return tmp_path


def set_field(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_damaged_shards_are_named(copies):
    folder = copies / "byte"
    shard = folder / "train-00001-of-00002.array_record"
    index = folder / "held_out-00000-of-00001.index.npy"
    whole = shard.read_bytes()
    size = len(whole)
    for file, content, words in (
        (shard, None, r"00001-of-00002.array_record, which manifest.json lis"),
        (shard, whole[:-7], rf"has {size - 7} bytes; parts.train.bytes of .*"
         rf"is {size}: the file was cut off"),
        (index, b"", r"held_out-0.*npy has 0 bytes; parts.held_out.bytes"),
        (shard, whole[:-9] + b"x" * 9, r"00001-of.* has edges_sha256 \w+…; "
         r"parts.train.edges_sha256 of manifest.json is"),
    ):  # fmt: skip
        before = file.read_bytes()
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(InputError, match=words) as error:
            open_prepared(folder)
        assert "\n" not in str(error.value)
        file.write_bytes(before)
    open_prepared(folder, verify=True)


def test_damage_amid_a_shard_is_found(tmp_path, monkeypatch):
    """By the hash if that is asked for, or else when it is read."""
    for i in range(100):
        (tmp_path / f"{i}.txt").write_text(f"{i} is here. " * 400)
    folder = tmp_path / "_corpus"
    monkeypatch.setattr("sys.argv", ["prepare_text"])
    files = ",".join(map(str, tmp_path.glob("*.txt")))
    flags = ["--held_out=0.1", "--processes=1", "--shards=2"]
    cli.run(prepare_text, [f"--input={files}", f"--output={folder}", *flags])
    path = folder / "train-00001-of-00002.array_record"
    with path.open("r+b") as file:
        assert path.stat().st_size > 3 << 16  # More than its edges.
        file.seek(path.stat().st_size // 2)
        file.write(b"damage")
    with pytest.raises(InputError, match=r"00001-of.* has sha256 .*damaged"):
        open_prepared(folder, verify=True)
    train = open_prepared(folder).train
    with pytest.raises(InputError, match=r"00001-of.*record is damaged"):
        for index in range(len(train)):
            train[index]


def test_a_large_index_is_hashed_whole(tmp_path, monkeypatch):
    """Damage far from both edges, which a length of one document more is."""
    texts = (json.dumps({"text": f"{i:06}"}) + "\n" for i in range(20_000))
    (tmp_path / "a.jsonl").write_text("".join(texts))
    monkeypatch.setattr("sys.argv", ["prepare_text"])
    folder = tmp_path / "corpus"
    flags = (f"--input={tmp_path}/a.jsonl", f"--output={folder}")
    cli.run(prepare_text, [*flags, "--processes=1"])
    index = folder / "train-00000-of-00001.index.npy"
    assert index.stat().st_size > 2 << 16
    found = np.load(index)
    found[len(found) // 2, 0] += 1
    np.save(index, found)
    with pytest.raises(InputError, match=r"index.npy has sha256 .* damaged"):
        open_prepared(folder)


def test_counts_of_the_manifest_are_those_of_the_index(copies):
    folder = copies / "byte"
    whole = (folder / "manifest.json").read_text()
    for words, change in (
        ("documents=7 of train-0", lambda s: s.update(documents=7)),
        ("tokens=7 of train-0", lambda s: s.update(tokens=7)),
        ("records.count=7 of", lambda s: s["records"].update(count=7)),
    ):
        set_field(folder, lambda m: change(m["parts"]["train"]["shards"][0]))  # noqa: B023
        with pytest.raises(InputError, match=words) as error:
            open_prepared(folder)
        assert "\n" not in str(error.value)
        (folder / "manifest.json").write_text(whole)
    set_field(folder, lambda m: m["tokenizer"].update(vocab_size=300))
    with pytest.raises(InputError, match=r"is 300, but .* has 256 ids"):
        open_prepared(folder)


def test_a_manifest_stands_for_its_corpus(copies):
    folder = copies / "byte"
    found = [
        open_corpora(DataConfig(paths=(str(path),)))
        for path in (folder, folder / "manifest.json")
    ]
    assert found[0].sha256 == found[1].sha256
    assert len(found[0].train[0]) == len(found[1].train[0])
    config = DataConfig(paths=(str(copies / "bpe/manifest.json"),))
    assert config.vocab_size() == 280


def test_shards_without_a_manifest_are_no_text(copies):
    folder = copies / "byte"
    for name in ("", "manifest.json", "train-00000-of-00002.array_record"):
        config = DataConfig(paths=(str(folder / name),))
        with pytest.raises(InputError, match="is a prepared corpus, not text"):
            load_corpus(config)
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"data.paths: .*shards but no manif"):
        open_corpora(DataConfig(paths=(str(folder),)))


def test_another_tokenizer_is_refused(copies, prepared):
    bpe, byte = str(copies / "bpe"), str(copies / "byte")
    own = json.loads((copies / "bpe/manifest.json").read_text())["tokenizer"]
    found = open_corpora(DataConfig(paths=(bpe,)))
    assert found.tokenizer.to_json()["hash"] == own["hash"]
    config = DataConfig(paths=(bpe,))
    assert (
        config.vocab_size() == found.tokenizer.vocab_size == own["vocab_size"]
    )
    for paths, tokenizer, given in (
        ((bpe,), "byte", None),
        ((bpe, byte), "auto", None),
        ((bpe,), "auto", ByteTokenizer()),
    ):
        config = DataConfig(paths=paths, tokenizer=tokenizer)
        with pytest.raises(InputError, match=r"has the tokenizer '.* but the"):
            open_corpora(config, given)
    with pytest.raises(InputError, match=r"'bpe' trains a tokenizer, but"):
        open_corpora(DataConfig(paths=(bpe,), tokenizer="bpe"))
    own_file = {"tokenizer": str(copies / "bpe/tokenizer.json")}
    open_corpora(DataConfig(paths=(bpe,), **own_file))
    path = copies / "bpe" / "tokenizer.json"
    model = json.loads(path.read_text())
    merge = model["model"]["merges"].pop()
    path.write_text(json.dumps(model))
    assert merge
    words = r"tokenizer.json has the hash .*tokenizer.hash of manifest.json"
    with pytest.raises(InputError, match=words):
        open_corpora(DataConfig(paths=(bpe,)))
    path.unlink()
    with pytest.raises(InputError, match=r"cannot read the tokenizer .*json"):
        open_corpora(DataConfig(paths=(bpe,)))


def test_a_manifest_of_another_kind_is_refused(copies):
    folder = copies / "byte"
    path = folder / "manifest.json"
    whole = path.read_text()
    for text, words in (
        (whole[:-9], "is not that of a prepared corpus"),
        ("[]", "is not that of a prepared corpus"),
        ('{"format": 1}', "is not that of a prepared corpus"),
        (whole.replace('"format": 1', '"format": 2'), "format=2; this version"),
        (whole.replace('"parts"', '"party"'), r"damaged \(no 'parts'\)"),
    ):
        path.write_text(text)
        config = DataConfig(paths=(str(folder),))
        with pytest.raises(InputError, match=words):
            config.vocab_size(), open_corpora(config)
    path.unlink()
    (folder / "unfinished").mkdir()
    with pytest.raises(InputError, match="is not finished"):
        is_prepared(folder)
    with pytest.raises(InputError, match="is not finished"):
        open_corpora(DataConfig(paths=(str(folder),)))


def test_no_corpus_trains_on_what_another_holds_out(copies, tmp_path):
    """Plain files are split as prepared ones are; shares must be the same."""
    plain = tmp_path / "plain.jsonl"
    plain.write_text("\n".join(json.dumps({"text": t}) for t in TEXTS))
    config = DataConfig(paths=(str(copies / "byte"), str(plain)))
    for separate in (False, True):
        found = open_corpora(config, separate=separate)
        train, held_out = (
            [{bytes(x.tokens.astype("u1")) for x in source} for source in part]
            for part in (found.train, found.held_out)
        )
        assert train[0] == train[1] and held_out[0] == held_out[1]
        wanted = {t.encode() for t in TEXTS if share_of(t) < 0.3}
        assert held_out[0] == wanted
    one = tmp_path / "one.txt"
    one.write_text(TEXTS[0])
    kept = share_of(TEXTS[0]) >= 0.3
    config = DataConfig(paths=(str(copies / "byte"), str(one)))
    assert kept and not len(open_corpora(config).held_out[0])
    one.write_text(min(TEXTS, key=share_of))
    with pytest.raises(InputError, match=r"below 0\.3 hold out all .*one\.txt"):
        open_corpora(config)
    other = copies / "other"
    shutil.copytree(copies / "byte", other)
    set_field(other, lambda m: m["settings"].update(held_out=0.1))
    config = DataConfig(paths=(str(copies / "byte"), str(other)))
    with pytest.raises(InputError, match=r"=0\.3, but .*other with 0\.1, so"):
        open_corpora(config)


@pytest.mark.parametrize(
    "setting",
    [
        {"text_field": "say"},
        {"prompt_field": "ask"},
        {"unique_paragraphs": True},
        {"held_out": 0.3},
    ],
)
def test_settings_of_plain_files_do_not_go_with_prepared_ones(
    prepared, setting
):
    """They may beside plain files, all but the share that is held out."""
    name = str(prepared / "byte")
    words = f"data.{min(setting)}=.* has no effect on a corpus that is prepared"
    with pytest.raises(InputError, match=words):
        open_corpora(DataConfig(paths=(name,), **setting))
    both = DataConfig(paths=(name, str(prepared / "a.jsonl")), **setting)
    words = {
        "held_out": "held_out=0.3 has no effect beside prepared corpora",
        "text_field": "has no text in 'say'",
        "prompt_field": "has no text in 'ask'",
    }.get(min(setting))
    if words is None:
        assert len(open_corpora(both).train) == 2
        return
    with pytest.raises(InputError, match=words):
        open_corpora(both)


def test_plain_files_have_no_hashes_to_verify(prepared):
    config = DataConfig(paths=(str(prepared / "a.jsonl"),), verify=True)
    with pytest.raises(InputError, match="verify=True has no effect on text"):
        open_corpora(config)


def test_no_plain_file_trains_on_what_another_holds_out(tmp_path):
    """The second has the documents of the first, and others besides."""
    paths = [tmp_path / f"{i}.jsonl" for i in range(2)]
    for path, texts in zip(paths, (TEXTS[:20], TEXTS), strict=True):
        path.write_text("\n".join(json.dumps({"text": t}) for t in texts))
    config = DataConfig(paths=tuple(map(str, paths)), held_out=0.4)
    found = open_corpora(config, separate=True)
    train, held_out = (
        [[bytes(x.tokens.astype("u1")) for x in source] for source in part]
        for part in (found.train, found.held_out)
    )
    for texts in train:
        assert len(texts) > 5
        assert not {*texts} & {*held_out[0], *held_out[1]}
        # One that the first has cut is not whole in the second.
        assert train[0][-1] + held_out[0][0] not in texts


def test_prepared_and_plain_corpora_go_together(copies, tmp_path):
    """One corpus per path, in their order, with one tokenizer."""
    plain = tmp_path / "plain.txt"
    plain.write_text("".join(f"{i} more\n" for i in range(401)))
    paths = (str(plain), str(copies / "byte"))
    for order in (paths, paths[::-1]):
        config = DataConfig(paths=order, max_held_out_bytes=200)
        found = open_corpora(config, separate=True)
        first = found.train[order.index(paths[0])]
        assert bytes(first[0].tokens.astype("u1")).startswith(b"0 more\n1 more")
        prepared = found.train[order.index(paths[1])]
        texts = {
            bytes(prepared[i].tokens.astype("u1")).decode()
            for i in range(len(prepared))
        }
        assert texts < {*TEXTS}
        held_out = found.held_out[order.index(paths[1])]
        assert int(held_out.lengths.sum()) == 100  # Half of 200 bytes.
    assert len(open_corpora(config).train) == 2
    other = DataConfig(paths=paths, held_out_paths=(str(plain),))
    with pytest.raises(InputError, match=r"do not go with prepared corpora"):
        open_corpora(other)
