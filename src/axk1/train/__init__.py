"""Training: data, objectives, stages. Stands beside the engine; start reading at ``stages.py``."""
