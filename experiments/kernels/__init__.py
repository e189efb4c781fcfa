"""Speed of the kernels beside other libraries'."""
