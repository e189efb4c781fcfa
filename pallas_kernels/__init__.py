"""Kernels for associative memories: one folder per operation.

Each folder holds a simple ``reference``, an exact fast form in plain
``jax.numpy``, a ``tpu`` kernel whose body is that form, ``shapes`` of real
models, and an ``api`` that validates arguments and dispatches by the platform
a program is lowered for. Nothing here depends on :mod:`nl_jax`.
"""
