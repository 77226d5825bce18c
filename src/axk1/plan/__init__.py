"""Memory arithmetic: what a model takes on each GPU of a given machine. Nothing is loaded."""
