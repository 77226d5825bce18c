"""Continuous batching: requests that come and go while one thread runs the model."""
