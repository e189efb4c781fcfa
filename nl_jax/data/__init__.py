"""Text corpora, tokenizers and batches of tokens."""

from nl_jax.data.batch import Batch
from nl_jax.data.batches import (
    Dataset,
    prepare,
    train_batches,
)
from nl_jax.data.contexts import CONTEXTS, EvaluationPiece, pieces
from nl_jax.data.corpora import Corpora, open_corpora
from nl_jax.data.documents import TextDocument
from nl_jax.data.iterator import make_iterator
from nl_jax.data.prepared import PreparedCorpus, is_prepared, open_prepared
from nl_jax.data.repeats import quoted, without_repeats
from nl_jax.data.sources import (
    Document,
    DocumentsInMemory,
    DocumentSource,
    tokenize,
)
from nl_jax.data.text import (
    Corpus,
    DataConfig,
    gzip_bits_per_byte,
    load_corpus,
)
from nl_jax.data.text_files import read_blocks
from nl_jax.data.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    Tokenizer,
    from_json,
)

__all__ = [
    "CONTEXTS",
    "BPETokenizer",
    "Batch",
    "ByteTokenizer",
    "Corpora",
    "Corpus",
    "DataConfig",
    "Dataset",
    "Document",
    "DocumentSource",
    "DocumentsInMemory",
    "EvaluationPiece",
    "PreparedCorpus",
    "TextDocument",
    "Tokenizer",
    "from_json",
    "gzip_bits_per_byte",
    "is_prepared",
    "load_corpus",
    "make_iterator",
    "open_corpora",
    "open_prepared",
    "pieces",
    "prepare",
    "quoted",
    "read_blocks",
    "tokenize",
    "train_batches",
    "without_repeats",
]
