"""Models for EleutherAI's ``lm-eval`` (extra ``lm-eval``)."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from lm_eval.api.model import LM

from nl_jax.checks import check_ids
from nl_jax.continual.sampling import Sampler, SamplerState
from nl_jax.continual.streaming import StreamChunk, stream
from nl_jax.continual.validation import fresh_state
from nl_jax.data import Tokenizer
from nl_jax.models import LanguageModel
from nl_jax.training import load_model

_Result = TypeVar("_Result")
_MOST = 256
"""Tokens to generate where a task does not say how many."""


class HarnessModel(LM):
    """A language model as ``lm_eval.simple_evaluate`` takes it.

    A text of any length is read as one stream: nothing is cut off, and what
    does not fit a chunk goes on from the state, at constant memory. Requests in
    a row with the same context, such as the choices of a question, continue
    from one state of it, which is never changed.

    Args:
        model: model from :func:`nl_jax.models.build`.
        variables: its parameters.
        tokenizer: that it was trained with.
        prefix: ids that every text begins with, such as BOS. Without them the
            first token of a text counts as likely as any other.
        chunk: tokens that are read at once; see
            :func:`~nl_jax.continual.stream`.

    Raises:
        InputError: for a ``prefix`` of other ids than the model's.

    Example:
        >>> import jax
        >>> from nl_jax.data import ByteTokenizer
        >>> from nl_jax.models import build
        >>> model = build("lstm", d_model=8, n_heads=1, n_layers=1)
        >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 1), int))
        >>> even = jax.tree.map(jnp.zeros_like, variables)
        >>> harness = HarnessModel(model, even, ByteTokenizer())
        >>> bits, _ = harness.score(b"once upon", b" a time")
        >>> round(-bits / np.log(2))  # Seven bytes, each one of 256.
        56
    """

    def __init__(
        self,
        model: LanguageModel,
        variables: Any,
        tokenizer: Tokenizer,
        *,
        prefix: Sequence[int] = (),
        chunk: int | None = None,
    ):
        super().__init__()
        self._model, self._variables = model, variables
        self._tokenizer, self._chunk = tokenizer, chunk
        self._prefix = np.asarray(prefix, np.int32)
        if self._prefix.size:
            check_ids("prefix", self._prefix, model.config.vocab_size)
        self._context: tuple[bytes, StreamChunk] | None = None

    @classmethod
    def load(cls, workdir: Any, step: int | None = None) -> "HarnessModel":
        """Loads a trained model; see :func:`nl_jax.training.load_model`."""
        loaded = load_model(workdir, step)
        return cls(loaded.model, loaded.variables, loaded.tokenizer)

    def loglikelihood(self, requests, disable_tqdm=False):
        """Returns :meth:`score` of each pair of context and continuation."""
        return self._all("loglikelihood", requests, self.score)

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        """Returns the log-likelihood of each text, in nats."""
        return self._all("loglikelihood_rolling", requests, self._rolling)

    def generate_until(self, requests, disable_tqdm=False):
        """Returns what follows each context, up to a text that ends it.

        Options of a request are ``until``, ``max_gen_toks`` and, with
        ``do_sample``, ``temperature`` and ``top_p``.
        """
        return self._all("generate_until", requests, self._generate)

    def score(
        self, context: str | bytes, continuation: str | bytes
    ) -> tuple[float, bool]:
        """Returns the log-likelihood of a continuation, in nats.

        Spaces at the end of the context count as the continuation's.

        Returns:
            The log-likelihood, and whether each token was the likeliest.
        """
        given, asked = _bytes(context), _bytes(continuation)
        kept = given.rstrip(b" ")
        ids = self._tokenizer.encode(given + asked)
        before = self._tokenizer.encode(kept)
        if np.array_equal(ids[: len(before)], before):
            ids = ids[len(before) :]
        else:  # A token reaches over the end of the context.
            ids = self._tokenizer.encode(given[len(kept) :] + asked)
        total, greedy = 0.0, True
        for read in self._read(ids, self._after(kept, before)):
            total -= float(read.nats.sum())
            greedy &= bool(read.likeliest.all())
        return total, greedy

    def _rolling(self, text):
        return self.score("", text)[0]

    def _generate(self, context, options):
        until = options.get("until") or []
        until = [until] if isinstance(until, str) else until
        ends = [_bytes(end) for end in until]
        text = _bytes(context)
        last = self._after(text, self._tokenizer.encode(text))
        sampler = self._sampler
        sampler.state = SamplerState(
            last.state, last.logits[0], sampler.state.key
        )
        sampled = options.get("do_sample", False)
        drawn = sampler.draw(
            options.get("max_gen_toks", _MOST),
            temperature=options.get("temperature", 1.0) if sampled else 0.0,
            top_p=options.get("top_p", 1.0),
        )
        ids: list[int] = []
        found = b""
        for token in drawn:
            ids.append(token)
            found = self._tokenizer.decode(ids)
            places = [found.find(end) for end in ends if end in found]
            if places:
                found = found[: min(places)]
                break
        return found.decode("utf-8", "replace")

    @functools.cached_property
    def _sampler(self) -> Sampler:
        """One for all requests, so that equal ones are drawn differently."""
        return Sampler(
            self._model,
            self._variables,
            vocab_size=self._tokenizer.vocab_size,
        )

    def _after(self, text: bytes, ids: np.ndarray) -> StreamChunk:
        """Returns what is known after a context, which is kept for the next."""
        if self._context is None or self._context[0] != text:
            logits = jnp.zeros((1, self._model.config.vocab_size))
            state = fresh_state(self._model, self._variables, 1)
            none = np.zeros((1, 0))
            last = StreamChunk(none, none, none, state, logits)
            whole = np.append(self._prefix, ids)
            *_, last = last, *self._read(whole, last)
            self._context = text, last
        return self._context[1]

    def _read(
        self, ids: np.ndarray, last: StreamChunk
    ) -> Iterator[StreamChunk]:
        return stream(
            self._model,
            self._variables,
            ids,
            last.state,
            chunk=self._chunk,
            logits=last.logits,
        )

    def _all(
        self, kind: str, requests: Iterable[Any], one: Callable[..., _Result]
    ) -> list[_Result]:
        found = []
        for request in requests:
            found.append(one(*request.args))
            self.cache_hook.add_partial(kind, request.args, found[-1])
        return found


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
