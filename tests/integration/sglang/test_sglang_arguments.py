"""What SGLang derives from the command line for A.X K1, beside what it derives for DeepSeek-V3."""

# pyright: reportMissingImports=false
from pathlib import Path
from typing import Any

import pytest
from sglang_checkpoints import NANO

from axk1.integrations.sglang import DRAFT, TARGET


def declared(engine: Any, folder: Path, architecture: str, **options: Any) -> dict[str, Any]:
    """The overrides that the providers of an architecture declare."""
    from sglang.srt.arg_groups.overrides import collect_model_override_declarations

    server_args = engine.arguments(folder, **{"attention_backend": None, **options})
    hf_config = engine.model_config(folder).hf_config
    pairs = collect_model_override_declarations(architecture, server_args, hf_config)
    return {field: value for _, fields in pairs for field, value in fields.items()}


@pytest.mark.parametrize(
    ("platform", "options"),
    [({}, {}), ({"is_sm100": True}, {}), ({}, {"enable_prefill_cp": True, "tp_size": 8, "attention_backend": "fa3"})],
)
def test_overrides_are_those_of_deepseek_v3_plus_ours(engine, platform: dict[str, bool], options: dict[str, Any]):
    from sglang.srt.runtime_context import override_platform

    with override_platform(**platform):
        theirs = declared(engine, NANO, "DeepseekV3ForCausalLM", **options)
        for architecture in (TARGET, DRAFT):
            found = declared(engine, NANO, architecture, **options)
            assert found == {**theirs, "disable_shared_experts_fusion": True}
    assert bool(theirs) is bool(platform or options)
    assert theirs.get("attention_backend") == ("trtllm_mla" if platform else None)


def test_the_family_lists_know_the_name(engine):
    from sglang.srt.arg_groups import overrides

    assert {TARGET, "DeepseekV3ForCausalLM"} <= overrides._DEEPSEEK_FAMILY_ARCHS
    assert TARGET not in overrides._FLASHINFER_ALLREDUCE_FUSION_ARCHS, "fusions were never run with our layer"


def test_speculation_takes_the_draft_out_of_the_same_checkpoint(engine):
    resolved = resolve(engine, speculative_algorithm="NEXTN")
    assert resolved["speculative_algorithm"] == "EAGLE"
    assert resolved["speculative_draft_model_path"] == str(NANO)
    steps = ("speculative_num_steps", "speculative_eagle_topk", "speculative_num_draft_tokens")
    assert [resolved[name] for name in steps] == [3, 1, 4]


def test_the_architecture_is_our_own_after_all_of_that(engine):
    server_args = engine.arguments(NANO, speculative_algorithm="NEXTN")
    server_args.resolve_once()
    assert engine.ModelConfig.from_server_args(server_args).hf_config.architectures == [TARGET]


def test_two_batch_overlap_is_refused(engine):
    with pytest.raises(ValueError, match="--enable-two-batch-overlap is not supported"):
        declared(engine, NANO, TARGET, enable_two_batch_overlap=True)


def resolve(engine: Any, **options: Any) -> dict[str, Any]:
    server_args = engine.arguments(NANO, **options)
    server_args.resolve_once()
    return server_args.resolved_dict()
