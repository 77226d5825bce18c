"""Stands for A.X K1's classes on a vLLM that the plugin was not tested with: importing it says so.

vLLM imports it when an A.X K1 model is to be served, and only then; it serves all other models as it does alone.
"""

from axk1.integrations.vllm.versions import check_version

check_version()
raise RuntimeError("The version of vLLM is accepted now, but was not when vLLM started: start it again.")
