"""The page of `spikedet web`: what is computed (`viewer`), how it is served (`server`)."""
