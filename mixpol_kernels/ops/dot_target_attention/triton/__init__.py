"""`dot_target_attention` on a GPU, in Triton. Only `launch` and `kernels` import triton."""
