"""Nested Learning in JAX: networks and optimizers as nested memories.

Behrouz et al., *Nested Learning: The Illusion of Deep Learning Architectures*
(arXiv 2512.24695). A model and its optimizer are one system of associative
memories, each learning from its own context at its own frequency.
"""

__version__ = "0.1.0"
