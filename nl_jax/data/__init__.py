"""Text corpora, tokenizers and batches of tokens."""

from nl_jax.data.batches import (
    Dataset,
    held_out_batches,
    make_iterator,
    prepare,
)
from nl_jax.data.documents import read_blocks
from nl_jax.data.repeats import quoted, without_repeats
from nl_jax.data.text import (
    Corpus,
    DataConfig,
    gzip_bits_per_byte,
    load_corpus,
)
from nl_jax.data.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    Tokenizer,
    from_json,
)

__all__ = [
    "BPETokenizer",
    "ByteTokenizer",
    "Corpus",
    "DataConfig",
    "Dataset",
    "Tokenizer",
    "from_json",
    "gzip_bits_per_byte",
    "held_out_batches",
    "load_corpus",
    "make_iterator",
    "prepare",
    "quoted",
    "read_blocks",
    "without_repeats",
]
