"""Peak rates of accelerators, against which a run's own is measured.

They are those that the makers publish for dense products of bfloat16: Google's
pages of each TPU version, NVIDIA's data sheets. JAX sees the two cores of a TPU
v2, v3 or v7x as two devices.
"""

import jax

from nl_jax.models import LanguageModel
from nl_jax.training.flops import model_flops
from nl_jax.training.train_config import TrainConfig

_TERA = {
    "TPU v2": 22.5,
    "TPU v3": 61.5,
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5": 459.0,
    "TPU v5p": 459.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
    "TPU7x": 1153.5,
    "NVIDIA A100": 312.0,
    "NVIDIA L4": 121.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100": 989.0,
    "NVIDIA H200": 989.0,
    "NVIDIA B200": 2250.0,
}
"""Operations per second of one device, in units of 10**12, by the beginning of
its kind, after which a GPU's form and memory follow."""


def peak_flops(device_kind: str) -> float | None:
    """Returns a device's peak in operations per second, if it is known.

    Args:
        device_kind: ``jax.devices()[0].device_kind``.

    Example:
        >>> peak_flops("TPU v5 lite"), peak_flops("NVIDIA H100 80GB HBM3")
        (197000000000000.0, 989000000000000.0)
        >>> peak_flops("cpu")
    """
    words = device_kind.replace("-", " ").split()
    for count in range(len(words), 0, -1):
        found = _TERA.get(" ".join(words[:count]))
        if found is not None:
            return found * 1e12
    return None


def ideal_seconds(model: LanguageModel, config: TrainConfig) -> float | None:
    """Returns a step's seconds if all devices did nothing but its products.

    ``None`` where the peak is unknown, such as on CPUs.
    """
    peak = peak_flops(jax.devices()[0].device_kind)
    if peak is None:
        return None
    per_token = model_flops(model, config.seq_len)
    tokens = config.batch_size * config.seq_len
    return tokens * per_token / (jax.device_count() * peak)
