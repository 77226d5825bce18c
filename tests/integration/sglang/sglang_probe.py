"""What SGLang makes of a checkpoint folder, told as JSON: run in a process of its own, with or without the plugin.

Usage: sglang_probe.py FOLDER [VERSION]; VERSION is what the installed SGLang says its version is.
"""

# pyright: reportMissingImports=false
import importlib.metadata
import json
import sys
from typing import Any


def probe(folder: str) -> dict[str, Any]:
    """Attention, draft and class of the model, or the sentence of its refusal."""
    from sglang.srt.plugins import load_plugins

    load_plugins()
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.models.registry import ModelRegistry

    try:
        config = ModelConfig(folder)
        draft = ModelConfig(folder, is_draft_model=True)
    except (RuntimeError, ValueError) as error:
        return {"refused": str(error)}
    model_class, name = ModelRegistry.resolve_model_cls(config.hf_config.architectures)
    return {
        "attention": config.attention_arch.name,
        "head_dim": config.head_dim,
        "latent": getattr(config, "kv_lora_rank", None),
        "draft": draft.hf_config.architectures,
        "draft_attention": draft.attention_arch.name,
        "target": config.hf_config.architectures,
        "class": f"{model_class.__module__}.{name}",
    }


if __name__ == "__main__":
    if len(sys.argv) > 2:
        real = importlib.metadata.version
        importlib.metadata.version = lambda name: sys.argv[2] if name == "sglang" else real(name)
    print("PROBE " + json.dumps(probe(sys.argv[1])))  # noqa: T201 - read by the test
