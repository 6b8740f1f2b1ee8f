"""The `polarity_embedding` op."""
