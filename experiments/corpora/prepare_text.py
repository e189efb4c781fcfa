"""Prepares a corpus of any size for training.

``python -m experiments.prepare_text --input=texts,more.jsonl --output=corpus``
reads text, JSONL, Parquet and datasets that were saved to a local folder,
compressed with gzip or zstd or not. It leaves out documents that it has read
before, holds out a part, tokenizes in parallel, and writes shards of tokens.
Then train with ``--config.data.paths=corpus``.

A document's text alone decides whether it is held out. The same command goes on
after an interruption, even by ``kill -9``, and gives the same files as without.
With ``--verify`` and ``--output``, it compares a corpus with its hashes.
"""

import os
import pathlib
import re
import time

import tqdm

from experiments.corpora import folder as corpus_folder
from experiments.corpora.reading import Inputs, read_inputs
from experiments.corpora.shards import ShardJob, write_shard
from experiments.corpora.tokenizing import (
    Choices,
    load_tokenizer,
    map_in_order,
)
from experiments.shared import flags
from nl_jax.data import open_prepared
from nl_jax.data.array_records import id_dtype
from nl_jax.data.documents import TextFields
from nl_jax.data.prepared import PARTS
from nl_jax.data.text_files import find_files
from nl_jax.errors import InputError

RECORD_TOKENS = 1 << 14
SHARD_BYTES, MOST_SHARDS = 1 << 28, 256
_ESCAPE = re.compile(r"\\([nrt\\])")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}
_SETTINGS = (
    "tokenizer",
    "text_field",
    "prompt_field",
    "document_bytes",
    "separator",
    "held_out",
)

FLAGS = {
    "input": flags.words([], "Files and folders of text."),
    "output": flags.folder(None, "New folder."),
    "tokenizer": flags.string(
        "byte", "byte, bpe for a new one, or the path of a tokenizer.json."
    ),
    "bpe_vocab_size": flags.integer(4096, "Ids of a new BPE.", 256),
    "bpe_sample_bytes": flags.integer(
        8_388_608, "Bytes of text that a new BPE is trained on, at most."
    ),
    "text_field": flags.string(
        "text", "Field of the text, or of the answer to a prompt."
    ),
    "prompt_field": flags.string(
        "", "Field of the prompt, which is no target; empty without prompts."
    ),
    "document_bytes": flags.integer(
        1 << 20, "Longer text files are cut into documents at lines' ends."
    ),
    "separator": flags.string(
        "",
        r"Text between the documents of a text file, such as \n\n\n, with \n, "
        r"\r, \t and \\ as in Python.",
    ),
    "held_out": flags.number(0.01, "Share of the documents.", 0, 1),
    "shards": flags.integer(
        None,
        "Files of the training part; default one per 256 MiB.",
        1,
        MOST_SHARDS,
    ),
    "processes": flags.integer(
        None, "That tokenize; default all cores, or 1 for less than 4 MiB."
    ),
    "verify": flags.switch("Only compare --output with its hashes."),
}


def main(values: flags.FlagValues) -> None:
    """Reads, tokenizes and writes."""
    if values.output is None:
        raise InputError("--output is missing; give a new folder")
    output = pathlib.Path(values.output).expanduser()
    if values.verify:
        open_prepared(output, field="--output", verify=True)
        print(f"{output}: all files are as they were written")
        return
    if not values.input:
        raise InputError("--input is missing; give files or folders of text")
    if not 0 < values.held_out < 1:
        raise InputError(
            f"--held_out={values.held_out} must be in (0, 1), such as 0.01"
        )
    files = _input_files(values.input, output)
    given = None
    if values.tokenizer.endswith(".json"):
        given = load_tokenizer(values.tokenizer)
    settings = _settings(values, files, given)
    began = time.monotonic()
    asked = {
        "settings": settings,
        "inputs": corpus_folder.describe_inputs(files),
    }
    with corpus_folder.opened(output, asked) as anew:
        if not anew:
            print(f"{output} has been prepared already, with these settings")
            return
        manifest, size = _prepare(values, asked, files, output, given)
    seconds = time.monotonic() - began
    for part in PARTS:
        found = manifest["parts"][part]
        print(
            f"{part}: {found['documents']:,} documents, "
            f"{found['tokens']:,} tokens, {found['text_bytes']:,} bytes"
        )
    print(
        f"left out: {manifest['duplicates']:,} duplicates, "
        f"{manifest['empty']:,} documents without text\n"
        f"{output}: read {size / 1e6:,.1f} MB in {seconds:.1f} s, "
        f"{size / 1e6 / seconds:,.1f} MB/s\n"
        f"train on it: python -m experiments.train_lm "
        f"--config.data.paths={output}"
    )


def _input_files(names, output):
    files: list[pathlib.Path] = []
    for name in names:
        inside = pathlib.Path(name).expanduser().resolve()
        if inside in (output.resolve(), *output.resolve().parents):
            raise InputError(
                f"--output={str(output)!r} is in --input={name!r}, whose files "
                "are read; give another folder"
            )
        files += find_files("--input", name)
    return list(dict.fromkeys(files))


def _settings(values, files, given):
    """Returns everything that the result depends on but the inputs."""
    settings = flags.pick(values, _SETTINGS)
    if given is not None:
        settings["tokenizer"] = given.to_json()["hash"]
    elif values.tokenizer == "bpe":
        settings |= flags.pick(values, ("bpe_vocab_size", "bpe_sample_bytes"))
    elif values.tokenizer != "byte":
        raise InputError(
            f"--tokenizer={values.tokenizer!r} must be one of 'byte', 'bpe', "
            "or the path of a tokenizer.json"
        )
    by_size = -(-sum(f.stat().st_size for f in files) // SHARD_BYTES)
    shards = values.shards or min(max(by_size, 1), MOST_SHARDS)
    return settings | {"shards": shards}


def _prepare(values, asked, files, output, given):
    """Returns the manifest, and the number of bytes that were read."""
    settings = asked["settings"]
    fields = TextFields(values.text_field, values.prompt_field, "--")
    separator = _ESCAPE.sub(
        lambda found: _ESCAPED[found[1]], values.separator
    ).encode()
    inputs = Inputs(files, fields, values.document_bytes, separator)
    if separator and not inputs.have_separator():
        print(
            f"warning: --separator={values.separator} is in no text file of "
            "--input"
        )
    processes = values.processes or _processes(files)
    path = corpus_folder.prepare_tokenizer(output, inputs, settings, given)
    tokenizer = load_tokenizer(path)
    shards = settings["shards"]
    choices = Choices(path, fields, values.held_out, shards)
    names = [f"train-{i:05}-of-{shards:05}" for i in range(shards)]
    names.append("held_out-00000-of-00001")
    with _bar("read", _total(files), "B") as bar:
        journal = read_inputs(
            output, names, inputs, choices, processes, bar.update
        )
    corpus_folder.check_parts(output, journal)
    id_bytes = id_dtype(tokenizer.vocab_size).itemsize
    jobs = [ShardJob(str(output), n, id_bytes, RECORD_TOKENS) for n in names]
    done = []
    with _bar("write", len(jobs), " shards") as bar:
        # Shards are mostly copied, which more processes do not speed up.
        for _, shard in map_in_order(write_shard, jobs, min(processes, 4)):
            done.append(shard)
            bar.update()
    manifest = corpus_folder.finish(
        output,
        tokenizer,
        asked,
        journal,
        {"train": done[:-1], "held_out": done[-1:]},
        RECORD_TOKENS,
    )
    return manifest, journal.size


def _processes(files):
    size = sum(file.stat().st_size for file in files if file.is_file())
    if size < 1 << 22 and all(file.is_file() for file in files):
        return 1  # Others would take longer to start.
    return os.cpu_count() or 1


def _bar(words, total, unit):
    # Nothing is shown where no one sees a bar grow.
    return tqdm.tqdm(
        desc=words, total=total, unit=unit, unit_scale=unit == "B", disable=None
    )


def _total(files):
    """Returns the number of bytes that will be read, if that is known."""
    packed = (".gz", ".zst", ".parquet")
    plain = all(f.is_file() and not f.name.endswith(packed) for f in files)
    return sum(f.stat().st_size for f in files) if plain else None
