"""Training, measuring and special tokens of the byte-level BPE vocabularies, and the chat template."""
