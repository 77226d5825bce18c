"""One of two processes of a tensor or expert parallel engine on gloo; rank 0 saves what came out.

Usage: sglang_worker.py RANK STORE FOLDER OUT OPTIONS, where OPTIONS is JSON with SGLang's server arguments.
"""

# pyright: reportMissingImports=false
import json
import sys
from pathlib import Path
from typing import Any

import torch


def observe(layer: Any, reductions: list[torch.Tensor], normed: list[torch.Tensor]) -> None:
    """Records what the layer's boundary sums over the processes and what its post-MLP norm is given."""
    from sglang.srt.layers.layer_boundary import exit as boundary

    summed = boundary.sum_output
    boundary.sum_output = lambda partial, *args, **kwargs: record(summed, partial, reductions, *args, **kwargs)
    layer.post_mlp_layernorm.register_forward_pre_hook(lambda module, inputs: normed.append(inputs[0].clone()))


def record(summed: Any, partial: torch.Tensor, reductions: list[torch.Tensor], *args: Any, **kwargs: Any) -> Any:
    reductions.append(partial.clone())
    result = summed(partial, *args, **kwargs)
    reductions.append(result.clone())
    return result


def main(rank: int, store: Path, folder: Path, out: Path, options: dict[str, Any]) -> None:
    import sglang_engine as engine

    engine.start(folder, store, rank, **options)
    model, draft = engine.load(folder), engine.load(folder, is_draft_model=True)
    reductions: list[torch.Tensor] = []
    normed: list[torch.Tensor] = []
    observe(model.model.layers[-1], reductions, normed)
    ids = torch.arange(2, 22)
    session = engine.Session(model, model.config.num_hidden_layers)
    states = torch.cat([session.forward(part) for part in ids.split((17, 1, 1, 1))])
    partial, complete = reductions[-2:]  # the last sum of the trunk's last step is that of its last MoE block
    draft.model.embed_tokens.weight, draft.lm_head.weight = model.get_embed_and_head()
    experts, width, _ = model.model.layers[-1].mlp.experts.w13_weight.shape
    found = {
        "states": states,
        "drafted": engine.Session(draft, 1).forward(ids[1:], states[:-1]),
        "partial": partial,
        "complete": complete,
        "normed": normed[-1],
        "experts_here": torch.tensor(experts),
        "width_here": torch.tensor(width),
    }
    torch.save(found, out.with_suffix(f".{rank}"))
    torch.distributed.barrier()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    places = (Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
    main(int(sys.argv[1]), *places, json.loads(sys.argv[5]))
