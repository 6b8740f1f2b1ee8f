"""Parts of the Triton kernels of several ops."""
