"""States of many users of one model: computed in turn, kept in files.

A request works on values of its own, and its state takes the place of the old
one only when it is done. A request that fails therefore changes nothing.
"""

import concurrent.futures
import contextlib
import itertools
import os
import pathlib
import re
import threading
import time
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any

import jax
import numpy as np

from nl_jax.continual import (
    Sampler,
    SamplerState,
    load_state,
    save_state,
    stream,
)
from nl_jax.errors import InputError
from nl_jax.training import LoadedModel

# Capital letters would name the same file twice where case does not count.
_NAME = re.compile("[a-z0-9][a-z0-9_-]{0,63}")


class RefusedError(Exception):
    """A request that cannot be answered, and the HTTP status that says why."""

    def __init__(self, status: HTTPStatus, message: Any):
        super().__init__(str(message))
        self.status = status


class Engine:
    """One thread that computes for all requests, a step of each in turn.

    Args:
        loaded: the model, and its tokenizer.
    """

    def __init__(self, loaded: LoadedModel):
        self._loaded = loaded
        self._worker = concurrent.futures.ThreadPoolExecutor(1)

    def sampler(
        self, state: SamplerState | None = None, seed: int | None = None
    ) -> Sampler:
        """Returns a sampler in a state; a seed starts its random key anew."""
        loaded = self._loaded
        sampler = Sampler(
            loaded.model,
            loaded.variables,
            vocab_size=loaded.tokenizer.vocab_size,
        )
        state = sampler.state if state is None else state
        if seed is not None:
            key = jax.random.key_data(jax.random.key(seed))
            state = state._replace(key=key)
        # Arrays without a fixed device would need programs of their own.
        sampler.state = jax.device_put(state, jax.devices()[0])
        return sampler

    def read(
        self, sampler: Sampler, tokens: Sequence[int], deadline: float
    ) -> tuple[int, float]:
        """Lets a sampler read tokens, until a monotonic time.

        Returns:
            How many it has read, and the sum of their losses in nats.
        """
        count, nats = 0, 0.0
        pieces = [np.asarray(tokens, np.int32)]
        for chunk in self._each(self._stream(sampler, pieces), deadline):
            count += chunk.targets.size
            nats += float(chunk.nats.sum())
            sampler.state = SamplerState(
                chunk.state, chunk.logits[0], sampler.state.key
            )
        return count, nats

    def draw(
        self, sampler: Sampler, count: int, deadline: float, **options: float
    ) -> Iterator[int]:
        """Yields tokens as a sampler draws them, until a monotonic time."""
        return self._each(sampler.draw(count, **options), deadline)

    def warm_up(self) -> None:
        """Compiles all programs, so that no request has to wait for them."""
        sampler = self.sampler()
        for source in (itertools.repeat(0), [0]):
            next(self._stream(sampler, source))
        next(sampler.draw(1))

    def close(self) -> None:
        """Ends the thread, after the step that it is computing."""
        self._worker.shutdown(cancel_futures=True)

    def _stream(self, sampler, source):
        """Reads in chunks, which is many times faster than token by token."""
        return stream(
            self._loaded.model,
            self._loaded.variables,
            source,
            sampler.state.fast,
            logits=sampler.state.logits[None],
        )

    def _each(self, items, deadline):
        while time.monotonic() < deadline:
            item = self._worker.submit(next, items, None).result()
            if item is None:
                return
            yield item


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

    def names(self) -> list[str]:
        """Returns the names of all sessions."""
        return sorted(path.stem for path in self.folder.glob("*.npz"))

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

    def get(self, name: str) -> SamplerState | None:
        """Returns the state of a session, or ``None`` if it may be begun."""
        path = self._path(name)
        if not path.exists():
            self._check_room()
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
            self._check_room()
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

    def _check_room(self):
        if len(self.names()) >= self._most:
            raise RefusedError(
                HTTPStatus.INSUFFICIENT_STORAGE,
                f"there are {self._most} sessions, which is the limit; delete "
                "one first",
            )

    def _path(self, name):
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise InputError(
                f"a session has the name {str(name)[:80]!r}; allowed are 1 to "
                "64 of a-z, 0-9, - and _, the first a letter or digit"
            )
        return self.folder / f"{name}.npz"
