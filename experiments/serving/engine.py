"""The thread that computes the steps of all requests in turn."""

import concurrent.futures
import itertools
import time
from collections.abc import Iterator, Sequence
from http import HTTPStatus

import jax
import numpy as np

from experiments.serving.requests import RefusedError
from nl_jax.continual import Sampler, SamplerState, stream
from nl_jax.training import LoadedModel, PositionTable


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
            How many it has read, and their bits per byte.
        """
        count, table = 0, PositionTable()
        n_bytes = self._loaded.tokenizer.byte_lengths
        pieces = [np.asarray(tokens, np.int32)]
        for chunk in self._each(self._stream(sampler, pieces), deadline):
            count += chunk.targets.size
            table.add(chunk.nats, n_bytes[chunk.targets])
            sampler.state = SamplerState(
                chunk.state, chunk.logits[0], sampler.state.key
            )
        return count, table.total()

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
        """Ends the thread after its step; requests at work are refused."""
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
            item = self._next(items)
            if item is None:
                return
            yield item

    def _next(self, items):
        stopping = RefusedError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "the server is stopping, and nothing has changed",
        )
        try:
            step = self._worker.submit(next, items, None)
        except RuntimeError as error:
            raise stopping from error
        # Errors of the step itself are others.
        try:
            return step.result()
        except concurrent.futures.CancelledError as error:
            raise stopping from error
