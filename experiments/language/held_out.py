"""The text that a training run held out."""

import dataclasses
from collections.abc import Iterable

from nl_jax.data import DataConfig, Document, DocumentSource, prepare
from nl_jax.errors import InputError
from nl_jax.training import LoadedModel


def held_out(loaded: LoadedModel, *, joined: bool) -> Iterable[Document]:
    """Returns the documents held out in training.

    Args:
        loaded: the trained model.
        joined: as a single one, which windows read.

    Raises:
        InputError: if the text of the run has changed.
    """
    saved = loaded.meta["config"]
    known = [field.name for field in dataclasses.fields(DataConfig)]
    fields = {k: v for k, v in saved["data"].items() if k in known}
    if fields["tokenizer"].endswith(".json"):
        fields["tokenizer"] = "bpe"  # That of the checkpoint.
    data = prepare(DataConfig(**fields), saved["seq_len"], loaded.tokenizer)
    if data.corpus.sha256 != loaded.meta["data"]["sha256"]:
        raise InputError(
            "the text of the run has changed since it was trained on; "
            "evaluate reads another with --file"
        )
    if joined:
        return [data.held_out]
    return each(data.corpus.held_out)


def each(sources: Iterable[DocumentSource]) -> Iterable[Document]:
    """Yields the documents of all sources."""
    return (source[i] for source in sources for i in range(len(source)))
