"""Kernels for associative memories: one folder per operation.

Each folder holds a token-by-token ``reference``, an exact ``chunked`` form in
plain ``jax.numpy``, a ``tpu`` kernel whose body is that form, ``shapes`` of
real models and an ``api`` that validates and dispatches by the platform that a
program is lowered for. Nothing here knows about :mod:`nl_jax`.
"""
