"""The page of `spikedet web`: `viewer` computes its content, and `server` serves it."""
