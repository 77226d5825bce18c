"""Scoring: answers to held-out problems in both modes, and how often drafts are accepted."""
