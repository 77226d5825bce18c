"""One layer of a model in memory at a time, and one of its routed experts: states, perplexity, calibration."""
