"""The `target_attention` op."""
