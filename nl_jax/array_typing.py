"""Every dimension's name, and the arrays that public functions pass around.

==== ==========================================================
Name What it counts
==== ==========================================================
B    rows of a batch, each with a context of its own
T    tokens of a call
C    tokens of a chunk
V    token ids
D    width of the model
H    heads
d    width of a head, ``D / H``; ``d_in``, ``d_out`` of a memory
n    memories of a head; fast layers of a model
==== ==========================================================

``...`` stands for any leading dimensions. Float arrays are ``float32``,
``bfloat16`` or ``float64``; fast state is never below ``float32``.
"""

from jaxtyping import Array, Float, Int

Ids = Int[Array, "B T"]
"""Token ids."""
Stream = Float[Array, "B T D"]
"""The residual stream, or what a layer adds to it."""
Channels = Float[Array, "... D"]
"""Anything of the model's width, or a head's."""
Channel = Float[Array, "D"]
"""A scale or bias per channel."""
Logits = Float[Array, "B T V"]
"""Scores of the token after each, ``float32`` or wider."""
Losses = Float[Array, "B T"]
"""Nats per token."""
Weight = Float[Array, "... d_in d_out"]
"""One matrix of a memory."""
Keys = Float[Array, "... T d_in"]
"""Keys or queries of a memory."""
Values = Float[Array, "... T d_out"]
"""Values, writes or outputs of a memory."""
PerToken = Float[Array, "... T"]
"""A gate: retention, step, momentum's decay."""
