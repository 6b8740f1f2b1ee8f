"""`polarity_fusion` on a GPU, in Triton."""
