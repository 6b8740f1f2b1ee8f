"""Softmax dot-product target attention with heads."""
