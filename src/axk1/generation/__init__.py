"""Turning prompts into tokens: sampling, the thinking budget, the decode loop, MTP acceptance."""
