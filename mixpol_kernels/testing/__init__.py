"""What tests and benchmarks share: random inputs, loop-form oracles, the error budget. Needs torch only."""
