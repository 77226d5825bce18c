"""Starting an engine on one machine or many: the exact commands, from a placement of ``axk1.plan``.

Nothing here imports vllm or sglang; what they accept is known for the versions that the other rooms of
``axk1.integrations`` are pinned to, and a test compares it with their argument parsers.
"""
