"""The `unit_statistics` op."""
