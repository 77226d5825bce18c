"""All arithmetic: what machines are and can do, what a model takes and costs, how it is placed. Nothing is loaded."""
