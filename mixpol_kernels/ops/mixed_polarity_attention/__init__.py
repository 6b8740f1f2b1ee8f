"""The `mixed_polarity_attention` op."""
