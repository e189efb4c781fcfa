"""States of many users of one model, kept in files.

A request works on values of its own, and its state takes the place of the old
one only when it is done. A request that fails therefore changes nothing.
"""

import contextlib
import os
import pathlib
import re
import threading
from collections.abc import Iterator
from http import HTTPStatus

from experiments.serving.requests import RefusedError
from nl_jax.continual import SamplerState, load_state, save_state
from nl_jax.errors import InputError
from nl_jax.training import LoadedModel

# Capital letters would name the same file twice where case does not count.
_NAME = re.compile("[a-z0-9][a-z0-9_-]{0,63}")


class Sessions:
    """A state for each name, in a file of its own.

    States are in memory only while a request works on them.

    Args:
        folder: of the files, which is created if necessary.
        loaded: the model, to which the states belong.
        most: sessions that may exist.
    """

    def __init__(
        self, folder: str | os.PathLike, loaded: LoadedModel, most: int = 1000
    ):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._loaded, self._most = loaded, most
        self._meta = loaded.state_meta
        self._lock = threading.Lock()
        self._held: set[str] = set()
        self._begun: set[str] = set()

    def names(self) -> list[str]:
        """Returns the names of all sessions."""
        return sorted(
            path.stem
            for path in self.folder.glob("*.npz")
            if _NAME.fullmatch(path.stem) and path.is_file()
        )

    def existing(self, name: str) -> pathlib.Path:
        """Returns the file of a session, after checking that there is one."""
        path = self._path(name)
        if not path.exists():
            raise RefusedError(
                HTTPStatus.NOT_FOUND, f"session {name} does not exist"
            )
        return path

    @contextlib.contextmanager
    def hold(self, *names: str) -> Iterator[None]:
        """Context in which no other request can use these sessions."""
        for name in names:
            self._path(name)
        with self._lock:
            for name in self._held.intersection(names):
                raise RefusedError(
                    HTTPStatus.CONFLICT,
                    f"session {name} is at work on another request; wait for "
                    "its end",
                )
            self._held.update(names)
        try:
            yield
        finally:
            with self._lock:
                self._held.difference_update(names)
                self._begun.difference_update(names)

    def get(self, name: str) -> SamplerState | None:
        """Returns the state of a session that this request holds.

        It is ``None`` for a new session, which then has room until the request
        ends.
        """
        path = self._path(name)
        if not path.exists():
            self._begin(name)
            return None
        model, variables = self._loaded.model, self._loaded.variables
        of = {"kind": SamplerState, "meta": self._meta}
        try:
            return load_state(path, model, variables, **of)
        except InputError as error:
            raise RefusedError(HTTPStatus.CONFLICT, error) from error

    def put(self, name: str, state: SamplerState) -> None:
        """Saves the state of a session, whole or not at all."""
        path = self._path(name)
        try:
            save_state(path, self._loaded.model, state, meta=self._meta)
        except InputError as error:
            raise RefusedError(
                HTTPStatus.INSUFFICIENT_STORAGE, error
            ) from error

    def fork(self, name: str, to: str) -> None:
        """Copies a session to a new name."""
        with self.hold(name, to):
            self.existing(name)
            if self._path(to).exists():
                raise RefusedError(
                    HTTPStatus.CONFLICT,
                    f"session {to} exists; delete it first",
                )
            self._begin(to)
            self.put(to, self.get(name))

    def reset(self, name: str, state: SamplerState) -> None:
        """Replaces the state of a session, which need not be readable."""
        with self.hold(name):
            self.existing(name)
            self.put(name, state)

    def delete(self, name: str) -> None:
        """Deletes a session."""
        with self.hold(name):
            self.existing(name).unlink()

    def _begin(self, name):
        """Takes room for a new session until the request ends."""
        with self._lock:
            if len(self._begun.union(self.names())) >= self._most:
                raise RefusedError(
                    HTTPStatus.INSUFFICIENT_STORAGE,
                    f"there are {self._most} sessions, which is the limit; "
                    "delete one first",
                )
            self._begun.add(name)

    def _path(self, name):
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise InputError(
                f"a session has the name {str(name)[:80]!r}; allowed are 1 to "
                "64 of a-z, 0-9, - and _, the first a letter or digit"
            )
        path = self.folder / f"{name}.npz"
        if path.exists() and not path.is_file():
            raise RefusedError(
                HTTPStatus.CONFLICT,
                f"{path.name} in the server's folder is no file; remove it",
            )
        return path
