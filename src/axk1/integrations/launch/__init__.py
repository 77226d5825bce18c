"""Starting an engine on one machine or many: the hardware, the sizes of parallelism, the exact commands.

Nothing here imports vllm or sglang; what they accept is known for the versions that the other rooms of
``axk1.integrations`` are pinned to, and a test compares it with their argument parsers.
"""
