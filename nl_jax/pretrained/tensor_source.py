"""Tensors of a file, taken by name and checked before they are read."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nl_jax.errors import InputError


class TensorSource:
    """Named tensors; each is read when it is taken, as float32.

    Args:
        path: how messages call the file.
        shapes: of every tensor in it.
        read: returns one by its name.

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
        """Returns a tensor's shape.

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
            InputError: if it is not there, has another shape, or is of a type
                that cannot be read.
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
        """Reads the tensor of every block, ``[count, *shape]``.

        Args:
            pattern: the name, with ``{}`` for the block's number.
            count: of blocks.
            shape: of each.

        Raises:
            InputError: as :meth:`take`.
        """
        # One by one, so that a wrong count allocates nothing.
        return np.stack(
            [self.take(pattern.format(index), shape) for index in range(count)]
        )

    def finish(self, buffers: Iterable[str] = ()) -> None:
        """Checks that nothing is left but buffers, by regular expressions.

        Raises:
            InputError: if there are other tensors.
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


def as_parameters(params: dict[str, Any]) -> dict[str, Any]:
    """Makes up for the root of the width with which embeddings are multiplied.

    They are stored divided by it, and where there is no other head the last
    norm is multiplied by it.
    """
    root = params["embedding"].shape[1] ** 0.5
    params["embedding"] = params["embedding"] / root
    if "head" not in params:
        for name in ("norm_scale", "norm_bias"):
            if name in params:
                params[name] = params[name] * root
    return {"params": jax.tree.map(jnp.asarray, params)}
