"""`polarity_embedding` on a GPU, in Triton."""
