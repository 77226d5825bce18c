"""A.X K1 for vLLM: a general plugin (entry point ``vllm.general_plugins``), which vLLM loads by itself.

It replaces vLLM's own ``AXK1ForCausalLM`` by one that reads every layout of the checkpoint, adds the MTP draft
(``AXK1MTPModel``) and the parsers ``axk1`` (reasoning and tool calls). ``docs/vllm.md`` tells how to serve with it.
Nothing of vLLM is imported before vLLM calls :func:`register`.
"""

# pyright: reportMissingImports=false

import logging

from axk1.integrations.vllm.versions import check_version, version_problem

__all__ = ["MODELS", "PARSER", "check_version", "register"]

MODELS = {
    "AXK1ForCausalLM": "axk1.integrations.vllm.model:AXK1ForCausalLM",
    "AXK1MTPModel": "axk1.integrations.vllm.draft:AXK1MTP",
}
"""Architecture names and their classes, imported when a model of that name is loaded."""
PARSER = "axk1"
"""Name of the reasoning parser and of the tool parser."""


def register() -> None:
    """Registers models, parsers and the MTP draft. vLLM calls it in each of its processes; again is harmless.

    On a vLLM that it was not tested with it takes the two names of ``MODELS`` only, which say so when such a model is
    to be served: whoever serves other models never notices that axk1 is installed.
    """
    if version_problem() is not None:
        _refuse_models()
        return
    from vllm.model_executor.models import ModelRegistry
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    from axk1.integrations.vllm.hooks import install_draft

    for name, where in MODELS.items():
        ModelRegistry.register_model(name, where)
    parsers = "axk1.integrations.vllm.parsers"
    ReasoningParserManager.register_lazy_module(PARSER, parsers, "AXK1ReasoningParser")
    ToolParserManager.register_lazy_module(PARSER, parsers, "AXK1ToolParser")
    install_draft()


def _refuse_models() -> None:
    try:
        from vllm.model_executor.models import ModelRegistry

        for name, where in MODELS.items():
            ModelRegistry.register_model(name, f"axk1.integrations.vllm.untested:{where.partition(':')[2]}")
    except Exception:  # of a vLLM whose registry is another: its models are none of ours
        logging.getLogger(__name__).warning("axk1 could not register with this vLLM.", exc_info=True)
