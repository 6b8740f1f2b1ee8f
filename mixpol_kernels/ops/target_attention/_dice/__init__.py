"""The `dice_attention` op."""
