"""Reader of GGUF files, llama.cpp's format for tensors, often quantised.

It reads versions 2 and 3 of the format, little endian. The reader of the
package ``gguf`` makes an array of each of 100,000 tokens, which takes half a
minute, and reads past the end of truncated files. Only that package's tables of
quantised types are used.
"""

import math
import mmap
import pathlib
import struct
from typing import Any

import numpy as np

from nl_jax.errors import InputError
from nl_jax.pretrained.tensor_source import TensorSource

MAGIC = b"GGUF"

_NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def open_gguf(path: pathlib.Path) -> tuple[TensorSource, dict[str, Any]]:
    """Opens a GGUF file.

    Returns:
        The tensors, with axes in NumPy's order, and the metadata.

    Raises:
        InputError: if the file is truncated, damaged or has an unknown type.
    """
    package = _package(path)
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        facts, tensors = _parse(data, package)
    except (struct.error, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is truncated or damaged") from error
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error

    def read(name):
        kind, shape, start, size = tensors[name]
        raw = np.frombuffer(data, np.uint8, size, start)
        try:
            rows = raw.reshape(package.quant_shape_to_byte_shape(shape, kind))
            return package.dequantize(rows, kind).reshape(shape)
        except NotImplementedError as error:
            raise InputError(
                f"{path}: the tensor {name} is of type {kind.name}, which the "
                "package gguf cannot turn into numbers"
            ) from error

    shapes = {name: shape for name, (_, shape, *_) in tensors.items()}
    return TensorSource(path, shapes, read), facts


def _parse(data, package):
    reader = _Reader(data)
    if reader.bytes(4) != MAGIC:
        raise ValueError("it is no GGUF file")
    version = reader.number("I")
    if version not in (2, 3):
        raise ValueError(f"it is of version {version}; 2 and 3 can be read")
    tensor_count, fact_count = reader.number("Q"), reader.number("Q")
    facts = {}
    for _ in range(fact_count):
        name = reader.text()
        facts[name] = reader.value(reader.number("I"))
    infos = []
    for _ in range(tensor_count):
        name, axes = reader.text(), reader.number("I")
        if axes > 4:
            raise ValueError(f"the tensor {name} has {axes} axes")
        shape = tuple(reader.number("Q") for _ in range(axes))[::-1]
        infos.append((name, shape, reader.number("I"), reader.number("Q")))
    alignment = facts.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"its alignment is {alignment!r}")
    start = -(-reader.at // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in infos:
        try:
            kind = package.GGMLQuantizationType(kind)
        except ValueError:
            raise ValueError(
                f"the tensor {name} is of the unknown type {kind}"
            ) from None
        block, size = package.GGML_QUANT_SIZES[kind]
        if not shape or shape[-1] % block:
            raise ValueError(f"the tensor {name} has shape {shape}")
        count = math.prod(shape) // block * size
        if start + offset + count > len(data):
            raise EOFError
        if name in tensors:
            raise ValueError(f"the tensor {name} is there twice")
        tensors[name] = kind, shape, start + offset, count
    return facts, tensors


class _Reader:
    """Sequential reader that never reads past the end."""

    def __init__(self, data):
        self._data = data
        self.at = 0

    def bytes(self, count):
        if self.at + count > len(self._data):
            raise EOFError
        self.at += count
        return self._data[self.at - count : self.at]

    def number(self, code):
        (value,) = struct.unpack_from(f"<{code}", self._data, self.at)
        self.at += struct.calcsize(code)
        return value

    def text(self):
        return self.bytes(self.number("Q")).decode()

    def value(self, kind):
        if kind == _STRING:
            return self.text()
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind != _ARRAY:
            raise ValueError(f"its metadata holds the unknown type {kind}")
        kind, count = self.number("I"), self.number("Q")
        if kind in _NUMBERS:
            dtype = np.dtype(_NUMBERS[kind]).newbyteorder("<")
            raw = self.bytes(count * dtype.itemsize)
            return np.frombuffer(raw, dtype).tolist()
        if kind == _STRING:
            return [self.text() for _ in range(count)]
        raise ValueError(f"its metadata holds an array of type {kind}")


def _package(path):
    try:
        import gguf
        import gguf.quants
    except ImportError as error:
        raise InputError(
            f'{path} needs the package gguf: pip install "nl-jax[pretrained]"'
        ) from error
    return gguf
