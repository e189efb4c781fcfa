"""Bits per byte of held-out text, in a context that is named."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from nl_jax.data import Batch, Dataset, Document, EvaluationPiece, pieces
from nl_jax.models import LanguageModel
from nl_jax.training import mesh as mesh_lib
from nl_jax.training.losses import LossSums, bits_per_byte
from nl_jax.training.step import predict
from nl_jax.training.train_config import TrainConfig


class PositionTable:
    """Bits per byte by position in a row's text, in buckets of doubling size.

    Sums are float64, so that a long text costs no digits.

    Example:
        >>> table = PositionTable()
        >>> table.add(np.full(4, np.log(2)), np.ones(4))
        >>> [row["start"] for row in table.rows()], table.total()
        ([0, 2, 4], 1.0)
    """

    def __init__(self):
        self._nats, self._bytes = np.zeros(64), np.zeros(64)
        self.tokens = 0
        """Number of targets that spell text."""
        self.begin(1)

    def begin(self, n_bytes: np.ndarray | int) -> None:
        """Begins new rows, after tokens of that many bytes."""
        self._position = np.asarray(n_bytes, np.int64)

    def add(self, nats: np.ndarray, n_bytes: np.ndarray) -> None:
        """Adds losses ``[n]`` or ``[B, n]`` of the rows' next tokens.

        Args:
            nats: losses of the tokens.
            n_bytes: bytes of text in each; those with 0 are left out.
        """
        n_bytes = np.asarray(n_bytes, np.int64)
        ends = self._position[..., None] + n_bytes.cumsum(-1)
        starts = ends - n_bytes
        bucket = np.frexp(np.maximum(starts, 1).astype(float))[1] - 1
        text = n_bytes > 0
        np.add.at(self._nats, bucket[text], np.asarray(nats)[text])
        np.add.at(self._bytes, bucket[text], n_bytes[text])
        self.tokens += int(text.sum())
        if n_bytes.shape[-1]:
            self._position = ends[..., -1]

    def rows(self) -> list[dict[str, float]]:
        """Returns ``start``, ``bytes`` and ``bits_per_byte`` of each bucket."""
        return [
            {
                "start": 2 ** int(bucket) if bucket else 0,
                "bytes": int(self._bytes[bucket]),
                "bits_per_byte": self._bits(slice(bucket, bucket + 1)),
            }
            for bucket in np.flatnonzero(self._bytes)
        ]

    def total(self) -> float:
        """Returns the bits per byte of all tokens."""
        return self._bits(slice(None))

    def _bits(self, buckets):
        nats, n_bytes = self._nats[buckets].sum(), self._bytes[buckets].sum()
        return bits_per_byte(LossSums(nats, self.tokens, n_bytes))


def evaluate(
    model: LanguageModel,
    variables: Any,
    documents: Iterable[Document],
    byte_lengths: np.ndarray,
    *,
    context: str,
    length: int = 512,
    rows: int = 8,
) -> PositionTable:
    """Returns bits per byte of documents, in all and by position.

    Args:
        model: model from :func:`nl_jax.models.build`.
        variables: parameters of the model.
        documents: documents, in any order.
        byte_lengths: bytes of text in each id.
        context: what the model has read before each token; see
            :func:`nl_jax.data.pieces`.
        length: tokens in a window or, without effect on the losses, in a call.
        rows: windows or documents in a call.

    Raises:
        InputError: if the context is unknown.

    Example:
        >>> from nl_jax.models import build
        >>> model = build("lstm", d_model=8, n_heads=1, n_layers=1)
        >>> text = Document(np.frombuffer(b"some text", np.uint8))
        >>> variables = jax.jit(model.init)(
        ...     jax.random.key(0), text.tokens[None]
        ... )
        >>> found = evaluate(
        ...     model, variables, [text], np.ones(256), context="document"
        ... )
        >>> found.tokens, [row["start"] for row in found.rows()]
        (8, [0, 2, 4, 8])
    """

    def read(tokens, state):
        if state is None:
            state = _init(model, variables, len(tokens))
        return _predict(model, variables, Batch(tokens), state)

    found = measure(
        read, pieces(documents, context, rows=rows, length=length), byte_lengths
    )
    assert found is not None  # Nothing stops it.
    return found


def evaluate_held_out(
    eval_step: Callable,
    variables: Any,
    data: Dataset,
    config: TrainConfig,
    mesh: jax.sharding.Mesh,
    stopped: Callable[[], bool],
) -> float | None:
    """Returns bits per byte of held-out text in windows of ``seq_len``.

    Args:
        eval_step: compiled :func:`predict` of the rows of all processes.
        variables: parameters of the model.
        data: held-out text, and its tokenizer.
        config: configuration of the run.
        mesh: devices of the run.
        stopped: whether to give up, and return ``None``.
    """
    rows = mesh_lib.process_rows(mesh, config.batch_size)

    def read(tokens, state):
        return eval_step(variables, mesh_lib.global_batch(mesh, tokens[rows]))

    cut = pieces(
        [data.held_out],
        "window",
        rows=config.batch_size,
        length=config.seq_len,
    )
    found = measure(read, cut, data.tokenizer.byte_lengths, stopped)
    return None if found is None else found.total()


def measure(
    read: Callable,
    cut: Iterable[EvaluationPiece],
    byte_lengths: np.ndarray,
    stopped: Callable[[], bool] = lambda: False,
) -> PositionTable | None:
    """Adds up the losses of pieces.

    Args:
        read: ``(tokens [B, n + 1], state) -> (losses [B, n], state)``, where a
            state of ``None`` starts from nothing.
        cut: pieces, in order.
        byte_lengths: bytes of text in each id.
        stopped: whether to give up, and return ``None``.
    """
    table, state = PositionTable(), None
    for piece in cut:
        if stopped():
            return None
        n_bytes = byte_lengths[piece.tokens]
        if piece.begins:
            state = None
            table.begin(n_bytes[:, 0])
        losses, state = read(piece.tokens, state)
        table.add(jax.device_get(losses), n_bytes[:, 1:] * piece.counts)
    return table


_predict = jax.jit(predict, static_argnums=0)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _init(model, variables, rows):
    return model.init_state(variables, rows)
