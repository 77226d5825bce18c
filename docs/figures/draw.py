"""Draws the figures of docs/architecture.md from the configuration of K1: ``python docs/figures/draw.py [FOLDER]``.

Every number in a figure is computed from ``AXK1Config.preset("k1")`` or from what ``axk1 info k1`` reports. The text in
the SVG files stays text; tests/integration/test_docs.py draws them again and compares it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import matplotlib.patches
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from axk1.config import AXK1Config
from axk1.modeling.moe import AXK1Router
from axk1.plan.describe import describe

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "axk1",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
PLAIN, CACHED, ROUTED, NORM = "#f2f2f2", "#ffe0b3", "#cfe3ff", "#dff2d8"
K1 = AXK1Config.preset("k1")


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty drawing whose units are inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def box(axes: Axes, x: float, y: float, text: str, color: str = PLAIN, width: float = 2.0, height: float = 0.5) -> None:
    """A labelled box centred on (x, y)."""
    axes.add_patch(
        mpl.patches.FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height, "round,pad=0,rounding_size=0.06", fc=color, ec="#555555"
        )
    )
    axes.text(x, y, text, ha="center", va="center")


def arrow(axes: Axes, *points: tuple[float, float]) -> None:
    """A line through the points, its last piece an arrow."""
    for start, end in pairwise(points):
        last = end == points[-1]
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>" if last else "-", "color": "#555555"})


def draw_layer() -> Figure:
    """A MoE decoder layer with its two residual additions."""
    figure, axes = canvas(6.4, 6.6)
    hidden = f"[batch, tokens, {K1.hidden_size:,}]"
    rows: list[tuple[float, str, str]] = [
        (6.2, f"hidden states {hidden}", PLAIN),
        (5.4, "input_layernorm", NORM),
        (4.7, f"self_attn: MLA, {K1.num_attention_heads} heads", CACHED),
        (3.9, "+", PLAIN),
        (3.1, "post_attention_layernorm", NORM),
        (2.15, "", PLAIN),
        (1.2, "post_mlp_layernorm", NORM),
        (0.4, "+", PLAIN),
    ]
    for y, text, color in rows:
        if text:
            box(axes, 3.2, y, text, color, width=0.5 if text == "+" else 3.4, height=0.42)
    for (above, *_), (below, *_) in pairwise(rows):
        arrow(axes, (3.2, above - 0.22), (3.2, below + 0.22))
    for top, bottom in ((5.85, 3.9), (3.55, 0.4)):  # residual paths
        arrow(axes, (3.2, top), (0.5, top), (0.5, bottom), (2.94, bottom))
    axes.add_patch(mpl.patches.Rectangle((0.75, 1.68), 4.9, 0.94, fc="none", ec="#999999", ls="--"))
    routed = f"{K1.num_experts_per_tok} of {K1.n_routed_experts} experts x {K1.routed_scaling_factor}"
    box(axes, 1.95, 2.15, f"{routed}\nwidth {K1.moe_intermediate_size:,}", ROUTED, width=2.1)
    axes.text(3.2, 2.15, "+", ha="center", va="center", bbox={"fc": "white", "ec": "none", "pad": 1})
    box(axes, 4.45, 2.15, f"{K1.n_shared_experts} shared expert\nwidth {K1.moe_intermediate_size:,}", ROUTED, width=2.1)
    axes.text(5.72, 2.5, "mlp", color="#777777")
    return figure


def draw_attention() -> Figure:
    """From hidden states over the cached latents to queries, keys and values."""
    c = K1
    figure, axes = canvas(8.2, 4.6)
    box(axes, 4.1, 4.3, f"hidden state {c.hidden_size:,}")
    box(axes, 1.4, 3.4, f"query latent {c.q_lora_rank:,}\nq_a_proj, norm")
    box(axes, 4.6, 3.4, f"key/value latent {c.kv_lora_rank}\nkv_a_proj_with_mqa, norm", CACHED, width=2.3)
    box(axes, 7.05, 3.4, f"rotary key {c.qk_rope_head_dim}\none for all heads", CACHED, width=1.9)
    box(axes, 0.85, 2.2, f"q nope\n{c.num_attention_heads} x {c.qk_nope_head_dim}", width=1.2)
    box(axes, 2.25, 2.2, f"q rope\n{c.num_attention_heads} x {c.qk_rope_head_dim}", width=1.2)
    box(axes, 3.95, 2.2, f"k nope\n{c.num_attention_heads} x {c.qk_nope_head_dim}", width=1.2)
    box(axes, 5.35, 2.2, f"v\n{c.num_attention_heads} x {c.v_head_dim}", width=1.2)
    box(axes, 7.05, 2.2, f"k rope\n{c.qk_rope_head_dim}", width=1.2)
    scale = f"softmax(q k / sqrt({c.qk_head_dim})) v"
    box(axes, 4.1, 1.1, f"{scale}    {c.num_attention_heads} x {c.v_head_dim}", width=4.4, height=0.45)
    box(axes, 4.1, 0.3, f"o_proj: {c.num_attention_heads * c.v_head_dim:,} to {c.hidden_size:,}", width=4.4, height=0.4)
    for end in ((1.4, 3.67), (4.6, 3.67), (7.05, 3.67)):
        arrow(axes, (4.1, 4.04), end)
    for start, end in (
        ((1.4, 3.13), (0.85, 2.47)),
        ((1.4, 3.13), (2.25, 2.47)),
        ((4.6, 3.13), (3.95, 2.47)),
        ((4.6, 3.13), (5.35, 2.47)),
        ((7.05, 3.13), (7.05, 2.47)),
        ((4.1, 0.86), (4.1, 0.52)),
    ):
        arrow(axes, start, end)
    for x in (0.85, 2.25, 3.95, 5.35, 7.05):
        arrow(axes, (x, 1.93), (min(max(x, 2.1), 6.1), 1.34))
    axes.text(1.4, 2.8, "q_b_proj", ha="center", bbox={"fc": "white", "ec": "none", "pad": 1})
    axes.text(4.6, 2.8, "kv_b_proj", ha="center", bbox={"fc": "white", "ec": "none", "pad": 1})
    axes.text(7.1, 4.25, f"orange: cached, {c.kv_lora_rank + c.qk_rope_head_dim} values", ha="center", color="#a06000")
    return figure


def draw_router() -> Figure:
    """One token through the real router: scores by group, groups kept, experts chosen."""
    torch.manual_seed(1)
    router = AXK1Router(AXK1Config.preset("k1", hidden_size=8))
    torch.nn.init.normal_(router.weight)
    with torch.no_grad():
        routing = router(torch.randn(1, 1, 8))
        scores = router.scores(routing.logits)
        kept = router.kept_experts(scores)[0]
    chosen = set(routing.indices[0].tolist())
    size = K1.n_routed_experts // K1.n_group
    figure = Figure(figsize=(8.2, 2.8), layout="constrained")
    axes = figure.add_subplot()
    colors = ["#1f5fbf" if e in chosen else ROUTED if kept[e] else "#d5d5d5" for e in range(K1.n_routed_experts)]
    axes.bar(range(K1.n_routed_experts), scores[0].tolist(), color=colors, width=0.9)
    for group in range(K1.n_group):
        axes.axvline((group + 1) * size - 0.5, color="white" if group == K1.n_group - 1 else "#999999", lw=0.6)
        axes.text((group + 0.5) * size, 1.03, f"group {group}", ha="center")
    axes.set(xlim=(-1, K1.n_routed_experts), ylim=(0, 1.1), ylabel="sigmoid score")
    axes.set_xlabel(
        f"{K1.n_routed_experts} experts; light blue: the {K1.topk_group} of {K1.n_group} groups kept; "
        f"dark blue: the {K1.num_experts_per_tok} experts chosen"
    )
    return figure


def draw_cache() -> Figure:
    """Bytes of the key/value cache by context, latent and expanded."""
    cache = describe("k1").cache
    figure = Figure(figsize=(6.4, 2.4), layout="constrained")
    axes = figure.add_subplot()
    for offset, kind, color in ((0.19, "expanded", "#bbbbbb"), (-0.19, "latent", "#f0a030")):
        sizes = [getattr(row, kind) / 1e9 for row in cache]
        bars = axes.barh([i + offset for i in range(len(sizes))], sizes, 0.36, color=color, label=kind)
        axes.bar_label(bars, [f" {size:,.1f} GB" for size in sizes])
    axes.set_yticks(range(len(cache)), [f"{row.context:,} tokens" for row in cache])
    axes.set(xlim=(0, 390), xlabel=f"bf16 cache of one sequence over {K1.num_hidden_layers} layers, GB")
    axes.legend(loc="lower right", frameon=False)
    return figure


def draw_mtp() -> Figure:
    """Which token each position of the trunk and of the MTP module sees and predicts."""
    figure, axes = canvas(8.2, 3.0)
    for i in range(4):
        x = 1.9 + 1.75 * i
        box(axes, x, 0.3, f"token {i}", width=1.4, height=0.36)
        box(axes, x, 1.1, f"trunk, final norm\npredicts token {i + 1}", CACHED, width=1.55)
        box(axes, x, 2.4, f"eh_proj, layer, norm\npredicts token {i + 2}", ROUTED, width=1.55)
        arrow(axes, (x, 0.49), (x, 0.84))
        arrow(axes, (x, 1.36), (x, 2.14))
        axes.text(x - 0.06, 1.62, "hnorm", ha="right", color="#555555")
        if i < 3:
            arrow(axes, (x + 1.0, 0.49), (x + 0.95, 1.3), (x + 0.35, 2.14))
            axes.text(x + 0.62, 1.78, f"enorm\n(token {i + 1})", color="#555555", fontsize=7.5)
    axes.text(0.1, 1.1, "trunk", va="center", weight="bold")
    axes.text(0.1, 2.4, "MTP module", va="center", weight="bold", fontsize=8)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "layer": draw_layer,
    "attention": draw_attention,
    "router": draw_router,
    "cache": draw_cache,
    "mtp": draw_mtp,
}


def draw_all(folder: Path) -> None:
    """Writes every figure as ``folder/NAME.svg``; the same versions give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, draw in FIGURES.items():
            draw().savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
