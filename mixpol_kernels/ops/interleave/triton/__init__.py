"""`interleave` on a GPU, in Triton."""
