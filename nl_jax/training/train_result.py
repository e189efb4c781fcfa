"""What training returns."""

from typing import Any, NamedTuple

from nl_jax.data import Tokenizer
from nl_jax.models import LanguageModel


class TrainResult(NamedTuple):
    """Result of a run that is finished, or was stopped by a signal."""

    model: LanguageModel
    variables: Any
    tokenizer: Tokenizer
    step: int
    """Steps done in all; fewer than configured if a signal stopped the run."""
    records: list[dict]
    """Metrics by step, those before a restart included."""
    held_out_bits_per_byte: float | None
    """Bits per byte of held-out text at the last evaluation."""
    gzip_bits_per_byte: float
    """Bits per byte of ``gzip -9`` on the held-out text that is scored."""
    text_sha256: str
    compile_seconds: dict[str, float]
    train_seconds: float
    """Duration of training in this process, with evaluation and saving."""
