"""A.X K1 for vLLM: a general plugin (entry point ``vllm.general_plugins``), which vLLM loads by itself.

It replaces vLLM's own ``AXK1ForCausalLM`` by one that reads every layout of the checkpoint, adds the MTP draft
(``AXK1MTPModel``) and the parsers ``axk1`` (reasoning and tool calls). ``docs/vllm.md`` tells how to serve with it.
Nothing of vLLM is imported before vLLM calls :func:`register`.
"""

# pyright: reportMissingImports=false

from axk1.integrations.vllm.versions import check_version

MODELS = {
    "AXK1ForCausalLM": "axk1.integrations.vllm.model:AXK1ForCausalLM",
    "AXK1MTPModel": "axk1.integrations.vllm.draft:AXK1MTP",
}
"""Architecture names and their classes, imported when a model of that name is loaded."""
PARSER = "axk1"
"""Name of the reasoning parser and of the tool parser."""


def register() -> None:
    """Registers models, parsers and the MTP draft. vLLM calls it in each of its processes; again is harmless.

    Raises:
        RuntimeError: a version of vLLM that this plugin was not run with.
    """
    check_version()
    from vllm.model_executor.models import ModelRegistry
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    from axk1.integrations.vllm.hooks import install_draft, install_expert_map

    for name, where in MODELS.items():
        ModelRegistry.register_model(name, where)
    parsers = "axk1.integrations.vllm.parsers"
    ReasoningParserManager.register_lazy_module(PARSER, parsers, "AXK1ReasoningParser")
    ToolParserManager.register_lazy_module(PARSER, parsers, "AXK1ToolParser")
    install_draft()
    install_expert_map()
