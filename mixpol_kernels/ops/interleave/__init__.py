"""The `interleave` op."""
