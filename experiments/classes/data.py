"""Labelled texts, divided into tasks of a few classes each.

Texts come from CSV or JSONL files. The default needs no file and asks which
module of the standard library five lines are from.
"""

import csv
import json
import pathlib
import random
import sysconfig
from typing import NamedTuple

import numpy as np

from nl_jax.errors import InputError

# Each has at least 120 snippets in Python 3.11 to 3.13 and exists in 3.14.
_NAMES = """
_collections_abc _pydecimal _pyio argparse asyncio.base_events
asyncio.proactor_events asyncio.selector_events asyncio.sslproto
asyncio.tasks asyncio.unix_events asyncio.windows_events bdb codecs
collections concurrent.futures.process configparser dataclasses difflib dis
doctest email._header_value_parser email.message enum ftplib functools
html.entities http.client http.cookiejar http.server imaplib
importlib._bootstrap importlib._bootstrap_external importlib.metadata
inspect ipaddress locale logging logging.config logging.handlers mailbox
multiprocessing.connection multiprocessing.managers multiprocessing.pool
ntpath optparse os pdb pickle pickletools platform plistlib pstats pydoc
random re._compiler re._parser shutil smtplib socket ssl statistics
subprocess tarfile tempfile threading traceback turtle typing unittest.case
unittest.mock urllib.parse urllib.request xml.dom.expatbuilder
xml.dom.minidom xml.etree.ElementTree xmlrpc.client xmlrpc.server
"""
MODULES = tuple(_NAMES.split())
"""The classes of :func:`standard_library`."""

_LINES, _CHARACTERS, _SNIPPETS = 5, 400, 120


class Texts(NamedTuple):
    """Labelled texts in two parts."""

    train: list[str]
    """Training texts."""
    train_labels: np.ndarray
    """Classes of the training texts, int32."""
    test: list[str]
    """Test texts."""
    test_labels: np.ndarray
    """Classes of the test texts, int32."""
    classes: list[str]
    """Names of the classes, sorted."""


def snippets(source: str) -> list[str]:
    r"""Cuts a program into snippets of five lines, stripped and not blank.

    Example:
        >>> snippets("a\n\n b\nc\nd\ne\nf")
        ['a\nb\nc\nd\ne']
    """
    lines = [line.strip() for line in source.splitlines() if line.strip()]
    starts = range(0, len(lines) - _LINES + 1, _LINES)
    joined = ("\n".join(lines[i : i + _LINES]) for i in starts)
    return [text for text in joined if len(text) <= _CHARACTERS]


def standard_library() -> Texts:
    """Returns up to 120 snippets of each of 77 modules, a fifth as the test.

    Raises:
        InputError: if a module is missing or too short.
    """
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    rng = random.Random(0)
    pairs = []
    for name in MODULES:
        path = folder.joinpath(*name.split("."))
        path = (
            path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        )
        if not path.is_file():
            raise InputError(f"{path} is not there; give texts with --data")
        found = snippets(path.read_text(encoding="utf-8", errors="replace"))
        rng.shuffle(found)
        pairs += [(text, name) for text in found[:_SNIPPETS]]
    return _split(pairs, "the standard library")


def read_texts(files: list[str], text: str, label: str) -> Texts:
    """Reads a training and a test file, or splits a single file.

    Args:
        files: one or two, CSV with a header or JSONL (``.jsonl``,
            ``.ndjson``). A fifth of each class of a single file is the test.
        text: the column of texts.
        label: the column of labels.

    Raises:
        InputError: for a file that cannot be read; the message names it.
    """
    if not 1 <= len(files) <= 2:
        raise InputError(
            f"--data={','.join(files)}: give one file, or train and test"
        )
    parts = [_pairs(pathlib.Path(file), text, label) for file in files]
    if len(parts) == 1:
        return _split(parts[0], files[0])
    known = {name for _, name in parts[0]}
    unknown = sorted({name for _, name in parts[1]} ^ known)
    if unknown:
        raise InputError(
            f"{files[0]} and {files[1]} do not have the same labels: "
            f"{unknown[0]!r} is in one of them only"
        )
    return _texts(*parts)


def validation_rows(texts: Texts) -> tuple[np.ndarray, np.ndarray]:
    """Divides the training texts: rows to learn, and a fifth of each class."""
    names = [texts.classes[k] for k in texts.train_labels]
    parts = _split(list(enumerate(names)), "the data")
    return np.array(parts.train), np.array(parts.test)


def class_tasks(classes: int, tasks: int, seed: int) -> list[np.ndarray]:
    """Shuffles the classes into tasks whose sizes differ by at most one.

    Raises:
        InputError: if there are fewer classes than tasks.

    Example:
        >>> [sorted(map(int, task)) for task in class_tasks(5, 2, 0)]
        [[2, 3, 4], [0, 1]]
    """
    if classes < tasks:
        raise InputError(
            f"--tasks={tasks}: there are only {classes} classes to share out"
        )
    order = np.random.default_rng(seed).permutation(classes)
    return np.array_split(order, tasks)


def _pairs(path, text, label):
    if not path.is_file():
        raise InputError(f"{path} is not a file")
    try:
        source = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text") from error
    ending = path.suffix.lower()
    if ending in (".jsonl", ".ndjson", ".jsonlines"):
        rows = [_json(path, i, x) for i, x in _numbered(source.splitlines())]
    elif ending == ".csv":
        rows = list(_numbered(csv.DictReader(source.splitlines(True))))
    else:
        raise InputError(f"{path}: the name must end in .csv or .jsonl")
    found = []
    for i, row in rows:
        if None in row:  # Where csv puts what is left of a row.
            raise InputError(
                f"{path}, row {i}: more values than columns; a text with a "
                "comma needs quotation marks"
            )
        for column in (text, label):
            if column not in row:
                raise InputError(
                    f"{path}, row {i}: no column {column!r} among "
                    f"{', '.join(row)}; see --text_column and --label_column"
                )
            if row[column] is None:
                raise InputError(f"{path}, row {i}: {column!r} has no value")
        found.append((str(row[text]), str(row[label])))
    if not found:
        raise InputError(f"{path} has no rows")
    return found


def _numbered(rows):
    return ((i, row) for i, row in enumerate(rows, 1) if row != "")


def _json(path, i, line):
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, row {i}: {error}") from error
    if not isinstance(row, dict):
        raise InputError(f"{path}, row {i}: not an object")
    return i, row


def _split(pairs, source):
    """Holds out a fifth of each class, and keeps at least one text of it."""
    by_label = {}
    for pair in pairs:
        by_label.setdefault(pair[1], []).append(pair)
    train, test = [], []
    for name, group in by_label.items():
        if len(group) < 2:
            raise InputError(
                f"{source}: {name!r} has a single text, too few to hold one out"
            )
        random.Random(0).shuffle(group)
        held_out = max(1, len(group) // 5)
        test += group[:held_out]
        train += group[held_out:]
    return _texts(train, test)


def _texts(train, test):
    classes = sorted({name for _, name in train})
    index = {name: i for i, name in enumerate(classes)}

    def part(pairs):
        labels = np.array([index[name] for _, name in pairs], np.int32)
        return [text for text, _ in pairs], labels

    return Texts(*part(train), *part(test), classes)
