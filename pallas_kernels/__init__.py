"""Kernels for associative memories: one folder per operation.

Each folder holds a token-by-token ``reference``, an exact ``chunked`` form in
plain ``jax.numpy`` and an ``api`` that validates and dispatches. Nothing here
knows about :mod:`nl_jax`.
"""
