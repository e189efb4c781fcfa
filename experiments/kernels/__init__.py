"""Speed of the kernels, compared with other libraries."""
