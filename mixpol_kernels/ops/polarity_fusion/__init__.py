"""The `polarity_fusion` op."""
