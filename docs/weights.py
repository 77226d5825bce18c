"""Writes ``docs/weights.md`` from the table of tensors: ``python docs/weights.py``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from axk1.checkpoint.names import HEAD_ROW, LAYER_ROWS, MODEL_ROWS, Row, expected_tensors
from axk1.config import AXK1Config
from axk1.files import write_text

PAGE = Path(__file__).with_suffix(".md")
HEADER = "| tensor | shape | dtype | meaning |\n|---|---|---|---|"


def weights_page() -> str:
    """The page for the released architecture, with one MTP layer described beside."""
    config = AXK1Config.preset("k1")
    moe, layers = config.first_k_dense_replace or 0, config.num_hidden_layers
    released = [spec for spec in expected_tensors(config) if not spec.name.endswith("e_score_correction_bias")]
    per_expert = [spec for spec in expected_tensors(config, "per_expert") if spec.dtype == "BF16"]
    total = sum(spec.size for spec in released)
    mtp = sum(
        spec.size
        for spec in expected_tensors(AXK1Config.preset("k1", num_nextn_predict_layers=1))
        if spec.part == "MTP" and spec.dtype == "BF16"
    )
    every = f"model.layers.{{0..{layers - 1}}}."
    dense = "model.layers.0." if moe == 1 else f"model.layers.{{0..{moe - 1}}}."
    sparse = f"model.layers.{{{moe}..{layers - 1}}}."
    rows = [row for row in LAYER_ROWS if row.when(config)]
    sections = [
        _INTRO.format(
            tensors=len(released), total=f"{total:,}", gigabytes=f"{2 * total / 1e9:,.1f}", per_expert=len(per_expert)
        ),
        "## Around the layers\n",
        _table(config, ((("" if row is HEAD_ROW else "model.") + row.key, row) for row in (*MODEL_ROWS, HEAD_ROW))),
        f"\n## Every layer: `{every}`\n",
        _table(config, _keys(rows, "all")),
        f"\n## The dense layer: `{dense}`\n",
        _table(config, _keys(rows, "dense")),
        f"\n## The MoE layers: `{sparse}`\n",
        "In both layouts:\n",
        _table(config, _keys([row for row in rows if row.layout is None], "moe")),
        "\nRouted experts in the released layout:\n",
        _table(config, _keys([row for row in rows if row.layout == "released"], "moe")),
        f"\nRouted experts in the per-expert layout, `N` from 0 to {config.n_routed_experts - 1}:\n",
        _table(config, _keys([row for row in rows if row.layout == "per_expert"], "moe")),
        _RELATION,
        f"## Multi-token prediction: `model.layers.{layers}.`\n",
        _MTP.format(layers=layers, mtp=f"{mtp:,}"),
        _table(config, _keys(rows, "mtp")),
        _READING,
    ]
    return "\n".join(sections)


def _keys(rows: Iterable[Row], layers: str) -> Iterable[tuple[str, Row]]:
    return ((row.key.replace("{e}", "N"), row) for row in rows if row.layers == layers)


def _table(config: AXK1Config, rows: Iterable[tuple[str, Row]]) -> str:
    lines = [HEADER]
    for name, row in rows:
        shape = ", ".join(f"{length:,}" for length in row.shape(config))
        dtype = "float32" if row.float32 else "bfloat16"
        optional = " (optional)" if row.optional else ""
        lines.append(f"| `{name}`{optional} | [{shape}] | {dtype} | {row.meaning} |")
    return "\n".join(lines)


_INTRO = """# Weights

Every tensor of the released A.X K1 (519B), in both layouts. `python docs/weights.py` writes this page from
`src/axk1/checkpoint/names.py`, the table that loading, saving, verifying and converting use; a test fails when the two
differ.

* Released layout: {tensors} tensors, {total} parameters, {gigabytes} GB in bfloat16. The experts are fused, three
  dimensions a tensor, and their keys do not end in `.weight`.
* Per-expert layout: {per_expert:,} tensors, the same parameters. Every expert has its own three matrices.
* Matrices are stored as `[outputs, inputs]`: `y = W x`.
* Files are safetensors, single (`model.safetensors`) or in shards (`model.safetensors.index.json`).

`axk1 info PATH` counts a checkpoint by part, `axk1 verify PATH` checks it, `axk1 convert SRC DST --layout per-expert`
(or `released`) rewrites it, also one that is [on the hub](quantization.md#from-a-checkpoint-that-is-elsewhere). In
Python `AXK1ForCausalLM.from_pretrained(path)` reads both layouts, and
`model.save_pretrained(path, layout="per_expert")` writes the one asked for (default `released`).
"""

_RELATION = """
The layouts hold the same numbers. With `F` = 2,048, the width of an expert:

* `gate_up_proj[N, :F]` is `experts.N.gate_proj.weight`, `gate_up_proj[N, F:]` is `experts.N.up_proj.weight`;
* `down_proj[N]` is `experts.N.down_proj.weight`.
"""

_MTP = """The released checkpoint holds none. A DeepSeek-style module of depth k is stored as layer `{layers} + k - 1`;
one adds {mtp} parameters. It has every tensor of a MoE layer (above), router and post-MLP norm included, and
"""

_READING = """
Its input is `eh_proj [enorm(embedding of the next token), hnorm(trunk state after the final norm)]`; the embedding and
the head are the trunk's.

## What reading allows

| in the file | what happens |
|---|---|
| no `e_score_correction_bias` | zero |
| no `post_mlp_layernorm` in a dense layer | ones (never applied) |
| `layers.N.embed_tokens.weight`, `layers.N.shared_head.head.weight` of an MTP layer | ignored: copies of the trunk's |
| no MTP layer although `num_nextn_predict_layers` asks for some | a warning; it becomes 0 |
| a trunk alone (no `model.` prefix, no head) | the head is new, transformers warns |
| `score.*` | the classification head; a missing one is new, transformers warns |
| anything else missing, surplus, misshapen, not a float, truncated | an error names file and tensor |
| NaN, infinity | the same error, of `axk1 verify` and of `from_pretrained(..., check_values=True)` |
"""

if __name__ == "__main__":
    write_text(PAGE, weights_page())
