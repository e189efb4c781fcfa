"""Names of dimensions, and types of the arrays in public signatures.

==== ==========================================================
Name Meaning
==== ==========================================================
B    batch size; each row has its own context
T    tokens of a call
C    tokens of a chunk
V    size of the vocabulary
D    width of the model
H    number of heads
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
"""The residual stream, or a layer's contribution to it."""
Channels = Float[Array, "... D"]
"""Any array whose last axis is the width of the model, or of a head."""
Channel = Float[Array, "D"]
"""One scale or bias per channel."""
Logits = Float[Array, "B T V"]
"""Scores of the next token at each position, ``float32`` or wider."""
Losses = Float[Array, "B T"]
"""Nats per token."""
Weight = Float[Array, "... d_in d_out"]
"""Weight matrix of a memory."""
Keys = Float[Array, "... T d_in"]
"""Keys or queries of a memory."""
Values = Float[Array, "... T d_out"]
"""Values, writes or outputs of a memory."""
PerToken = Float[Array, "... T"]
"""A gate per token: retention, step size or momentum decay."""
