"""Tensors of a file by name, checked before they are read."""

import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from nl_jax.errors import InputError


class TensorSource:
    """Tensors by name, read on demand as float32.

    Args:
        path: name of the file in error messages.
        shapes: shapes of all tensors in the file.
        read: function from a tensor's name to its values.

    Example:
        >>> source = TensorSource("a", {"w": (2,)}, lambda name: np.ones(2))
        >>> source.take("w", (2,)).tolist()
        [1.0, 1.0]
    """

    def __init__(
        self,
        path: object,
        shapes: Mapping[str, tuple[int, ...]],
        read: Callable[[str], np.ndarray],
    ):
        self.path = path
        self._shapes = dict(shapes)
        self._read = read
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor.

        Raises:
            InputError: if there is no such tensor.
        """
        if name not in self._shapes:
            raise InputError(
                f"{self.path} lacks the tensor {name}; it is incomplete or "
                "of another architecture"
            )
        return self._shapes[name]

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Reads a tensor.

        Raises:
            InputError: if it is missing, of another shape or of a type that is
                not supported.
        """
        if self.shape(name) != shape:
            raise InputError(
                f"{self.path}: the tensor {name} has shape "
                f"{self._shapes[name]}; its configuration says {shape}"
            )
        self._taken.add(name)
        return self._read(name).astype(np.float32)

    def stack(
        self, pattern: str, count: int, shape: tuple[int, ...]
    ) -> np.ndarray:
        """Reads a tensor of each block, stacked as ``[count, *shape]``.

        Args:
            pattern: name of the tensor, with ``{}`` for the block's index.
            count: number of blocks.
            shape: shape of each tensor.

        Raises:
            InputError: as for :meth:`take`.
        """
        # One by one: a wrong count fails before the stack is allocated.
        return np.stack(
            [self.take(pattern.format(index), shape) for index in range(count)]
        )

    def finish(self, buffers: Iterable[str] = ()) -> None:
        """Checks that all tensors were read, except ``buffers`` (regexes).

        Raises:
            InputError: if there are others.
        """
        rest = [
            name
            for name in self._shapes
            if name not in self._taken
            and not any(re.fullmatch(b, name) for b in buffers)
        ]
        if rest:
            raise InputError(
                f"{self.path} holds {len(rest)} tensors that its "
                f"configuration has no place for, such as {min(rest)}; it is "
                "of another architecture"
            )


def take_head(
    source: TensorSource, name: str, embedding: np.ndarray, tied: bool | None
) -> np.ndarray | None:
    """Reads the output head; ``None`` if it is the embedding.

    A head of its own counts, whatever the configuration says, unless it equals
    the embedding to which it is tied.

    Args:
        source: tensors.
        name: name of the head.
        embedding: the embedding, ``[V, D]``.
        tied: what the configuration says; ``None`` if it does not.

    Raises:
        InputError: if there is no head, although it is not tied.
    """
    if name not in source and tied is not False:
        return None
    head = source.take(name, embedding.shape)
    return None if tied and np.array_equal(head, embedding) else head
