"""Stands in for vLLM: outside of CUDA, SGLang takes one kernel from it at construction (see ``_custom_ops``)."""
