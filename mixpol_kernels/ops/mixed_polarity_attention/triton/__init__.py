"""`mixed_polarity_attention` on a GPU: the Triton launchers of the two ops that it fuses, one after the other."""
