"""What the plugin registers in the vLLM that is importable here, as JSON: ``python registry.py``. Needs no kernels."""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
from typing import Any

from support import NANO
from transformers import DeepseekV3Config


def found() -> dict[str, Any]:
    """Classes and their bases by architecture, what becomes of draft configurations, and the parsers."""
    import vllm
    from vllm.config.speculative import SpeculativeConfig
    from vllm.model_executor.models import ModelRegistry
    from vllm.plugins import load_general_plugins
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    from axk1 import AXK1Config

    load_general_plugins()
    load_general_plugins()
    names = ("AXK1ForCausalLM", "AXK1MTPModel", "DeepSeekMTPModel")
    classes = {name: ModelRegistry.models[name].load_model_cls() for name in names}
    ours, theirs = AXK1Config.from_pretrained(NANO), DeepseekV3Config(architectures=["DeepseekV3ForCausalLM"])
    theirs.num_nextn_predict_layers = 1
    drafts = [SpeculativeConfig.hf_config_override(config) for config in (ours, ours, theirs)]
    return {
        "version": vllm.__version__,  # pyright: ignore[reportAttributeAccessIssue]: not this folder
        "classes": {name: [f"{c.__module__}.{c.__name__}" for c in cls.__mro__[:2]] for name, cls in classes.items()},
        "drafts": [draft.architectures for draft in drafts],
        "parsers": [
            manager_parser.__name__
            for manager_parser in (
                ReasoningParserManager.get_reasoning_parser("axk1"),
                ToolParserManager.get_tool_parser("axk1"),
            )
        ],
    }


if __name__ == "__main__":
    print(json.dumps(found()))  # noqa: T201
