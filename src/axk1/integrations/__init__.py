"""Thin adapters to engines that serve or evaluate the model; each is pinned to the versions it was run with."""
