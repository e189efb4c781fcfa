"""Numbers of devices, and which axes of arrays they split."""

import dataclasses
from collections.abc import Mapping

from flax.core import FrozenDict

from nl_jax.checks import check_fields
from nl_jax.errors import InputError
from nl_jax.models import ModelConfig

MESH_AXES = ("data", "fsdp", "tensor", "sequence")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; see :mod:`nl_jax.training.mesh`."""

    data: int = -1
    """Devices that split the batch; -1 for as many as the other axes leave."""
    fsdp: int = 1
    """Devices that split the batch, and parameters and their optimizer's state
    at rest."""
    tensor: int = 1
    """Devices that split heads, MLP widths and the vocabulary."""
    sequence: int = 1
    """Devices that split the tokens of a row; each hands its memories on to the
    next, see :mod:`nl_jax.models.sequence_axis`."""
    parameter_axes: Mapping[str, str] = FrozenDict(
        embed="fsdp",
        vocab="tensor",
        mlp="tensor",
        mixer="tensor",
        heads="tensor",
    )
    """Where parameters rest: for names of their axes an axis of the mesh, or
    several, as in ``"fsdp,tensor"``."""
    compute_axes: Mapping[str, str] = FrozenDict(batch="data,fsdp", vocab="")
    """Where computation happens: the same for the activations' ``batch``, for
    the ``vocab`` of embedding and logits, and for ``embed`` of the embedding
    and of blocks.
    ``vocab="tensor"`` saves memory, but XLA's collectives on CPUs may then wait
    for each other for ever."""

    def __post_init__(self):
        check_fields(self, "mesh.", data=-1, fsdp=-1, tensor=-1, sequence=-1)
        for name in ("parameter_axes", "compute_axes"):
            self._check_axes(name)
        for name in MESH_AXES:
            if getattr(self, name) == 0:
                raise InputError(
                    f"mesh.{name}=0 must be at least 1, or -1 for as many "
                    "devices as the other axes leave"
                )

    def check_sequence(self, model: ModelConfig, reading: str, length: int):
        """Raises ``InputError`` if rows cannot be cut over ``sequence``."""
        devices, cycle = self.sequence, model.cycle
        if devices == 1:
            return
        if model.cms.learns:
            raise InputError(
                f"mesh.sequence={devices} must be 1 with model.cms.objective="
                f"{model.cms.objective!r}, whose levels learn in context"
            )
        if reading != "windows":
            raise InputError(
                f"mesh.sequence={devices} must be 1 with data.reading="
                f"{reading!r}; it goes with 'windows'"
            )
        if devices != -1 and length % (devices * cycle):
            raise InputError(
                f"seq_len={length} must be a multiple of mesh.sequence * "
                f"{cycle} tokens = {devices * cycle}"
            )

    def _check_axes(self, field):
        given = getattr(self, field)
        if not isinstance(given, Mapping):
            raise InputError(f"mesh.{field}={given!r} must be a mapping")
        for name, axes in given.items():
            found = split(axes) if isinstance(axes, str) else ("",)
            if not {*found} <= {*MESH_AXES} or len({*found}) < len(found):
                raise InputError(
                    f"mesh.{field}[{name!r}]={axes!r} must be one or more of "
                    f"{', '.join(MESH_AXES)}, each once, with commas between "
                    "them, or ''"
                )
        object.__setattr__(self, field, FrozenDict(given))


def split(axes: str) -> tuple[str, ...]:
    """Returns the axes of the mesh in a value of ``MeshConfig``'s maps.

    Example:
        >>> split("data,fsdp"), split("")
        (('data', 'fsdp'), ())
    """
    return tuple(axis for axis in axes.split(",") if axis)
