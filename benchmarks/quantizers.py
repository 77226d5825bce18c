"""`axk1 quantize` beside llm-compressor and AutoRound: how far each takes a model from its source, at equal bits.

    python -m venv .venv-quantizers
    .venv-quantizers/bin/pip install torch==2.13.0
    .venv-quantizers/bin/pip install llmcompressor==0.14.0.1      # AutoRound comes with it
    python benchmarks/quantizers.py models/nano --scheme int4 --group-size 64 --json quantizers.json

All get the same rows of tokens, of the nano's training problems, and quantise the same matrices: attention but for
`kv_b_proj`, experts, shared experts and dense MLPs. Measured is the divergence of the next token's probabilities from
the source's (Kullback-Leibler, nats) over the right replies to held-out problems, reasoning included, in float32.
Peers run transformers' own class of the architecture, its experts made into ordinary matrices by llm-compressor.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PEERS = ROOT / ".venv-quantizers" / "bin" / "python"
TOKENS = 256
"""Of a row."""
BITS = {"int4": 4, "int3": 3, "int8": 8}
METHODS = ("axk1", "axk1, calibrated", "rounding", "gptq", "autoround")
KEPT = ("lm_head", "re:.*mlp.gate$", "re:.*kv_b_proj$")


def main() -> None:
    """Builds and compares."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--scheme", default="int4", choices=sorted(BITS))
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--rows", type=int, default=256, help=f"of {TOKENS} tokens, to calibrate with")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--methods", default=",".join(METHODS), help="separated by commas")
    parser.add_argument("--iterations", type=int, default=200, help="of AutoRound")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        _peer(arguments)
    else:
        _compare(arguments)


def _compare(arguments: argparse.Namespace) -> None:
    import torch
    from safetensors.torch import save_file

    from axk1.load import load_tokenizer

    methods = [name for name in arguments.methods.replace("axk1, ", "axk1-").split(",") if name]
    methods = [name.replace("axk1-", "axk1, ") for name in methods]
    tokenizer = load_tokenizer(arguments.model)
    rows = _rows(tokenizer, arguments.rows)
    held = _replies(tokenizer, arguments.problems)
    exact = _log_probabilities(arguments.model, None, held)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="axk1-quantizers-") as scratch:
        folder = Path(scratch)
        save_file({"rows": torch.tensor(rows)}, folder / "rows.safetensors")
        for number, method in enumerate(methods):
            place = folder / str(number)
            begun = time.monotonic()
            if method.startswith("axk1"):
                _ours(arguments, place, rows if "calibrated" in method else None)
                made, extra = _log_probabilities(place, None, held), {}
            else:
                extra = _ask_peer(arguments, method, folder, place)
                made = _log_probabilities(arguments.model, place / "weights.safetensors", held)
            seconds = extra.pop("seconds", time.monotonic() - begun)
            found[method] = {**_divergence(exact, made), "seconds": round(seconds, 1), **extra}
            print(f"{method}: {found[method]}", flush=True)  # noqa: T201
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def _rows(tokenizer: Any, count: int) -> list[list[int]]:
    """Conversations of the nano's training, one behind the other, in rows of equal length."""
    from itertools import islice

    from axk1.train.examples import problem_examples

    examples = problem_examples(tokenizer, 7, think=0.5, dialogue=0.1, learn_prompt=True)
    ids = [token for example in islice(examples, count * 4) for token in example.input_ids]
    assert len(ids) >= count * TOKENS
    return [ids[i * TOKENS : (i + 1) * TOKENS] for i in range(count)]


def _replies(tokenizer: Any, count: int) -> list[tuple[list[int], int]]:
    """Token ids of the right replies to held-out problems in both modes, and where each reply begins."""
    from axk1.evaluation.held_out import held_out_problems

    found = []
    for number, problem in enumerate(held_out_problems(count, seed=17)):
        think = number % 2 == 0
        messages = [{"role": "user", "content": problem.question}]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, enable_thinking=think, tokenize=True, return_dict=False
        )
        reply = f"{problem.reasoning}</think>{problem.answer}" if think else problem.answer
        found.append((prompt + tokenizer(f"{reply}<|im_end|>", add_special_tokens=False)["input_ids"], len(prompt)))
    return found


def _log_probabilities(model: Path, weights: Path | None, held: list[tuple[list[int], int]]) -> list[Any]:
    """Of every token of the vocabulary at every place of the replies, ``[tokens, V]`` each.

    Args:
        weights: matrices in place of the model's own.
    """
    import torch
    from safetensors.torch import load_file

    from axk1 import AXK1ForCausalLM
    from axk1.checkpoint.names import expert_part

    loaded = AXK1ForCausalLM.from_pretrained(model, dtype="float32").eval()
    with torch.inference_mode():
        state = loaded.state_dict()
        for name, weight in (load_file(weights) if weights else {}).items():
            part = expert_part(name)
            if part is None:
                state[name].copy_(weight)
                continue
            stack = state[part.base + ("down_proj" if part.projection == "down_proj" else "gate_up_proj")]
            half = slice(0, len(weight)) if part.projection != "up_proj" else slice(len(weight), 2 * len(weight))
            stack[part.expert, half].copy_(weight)
        found = []
        for ids, start in held:
            logits = loaded(input_ids=torch.tensor([ids]), use_cache=False).logits[0, start - 1 : -1]
            found.append(logits.log_softmax(-1))
    return found


def _divergence(exact: list[Any], made: list[Any]) -> dict[str, float]:
    import torch

    each = torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in zip(exact, made, strict=True)])
    same = torch.cat([p.argmax(-1) == q.argmax(-1) for p, q in zip(exact, made, strict=True)])
    return {"divergence": float(f"{each.double().mean():.4g}"), "same first": round(same.double().mean().item(), 5)}


def _ours(arguments: argparse.Namespace, target: Path, rows: list[list[int]] | None) -> None:
    import torch

    from axk1.checkpoint.quantize import quantize_checkpoint
    from axk1.kernels.rounding import rounded
    from axk1.layerwise.calibrate import quantize_calibrated
    from axk1.layerwise.states import Rows

    group = None if arguments.scheme == "int8" else arguments.group_size
    options = {"group_size": group, "rounder": rounded}
    if rows is None:
        quantize_checkpoint(arguments.model, target, arguments.scheme, **options)
        return
    ids = torch.tensor(rows)
    positions = torch.arange(TOKENS).expand_as(ids)
    quantize_calibrated(arguments.model, target, arguments.scheme, Rows(ids, ids, positions), **options)


def _ask_peer(arguments: argparse.Namespace, method: str, folder: Path, place: Path) -> dict[str, float]:
    place.mkdir()
    options = ["--scheme", arguments.scheme, "--group-size", str(arguments.group_size)]
    options += ["--iterations", str(arguments.iterations)]
    command = [str(PEERS), __file__, str(arguments.model), *options, "--peer", method, "--folder", str(folder)]
    with (place / "log").open("wb") as log:
        code = subprocess.run([*command, "--json", str(place / "report.json")], stdout=log, stderr=log, check=False)
    if code.returncode:
        sys.exit(f"{method} failed: {(place / 'log').read_text(errors='replace')[-3000:]}")
    (place / "weights.safetensors").symlink_to(folder / f"{method}.safetensors")
    return json.loads((place / "report.json").read_text())


def _peer(arguments: argparse.Namespace) -> None:
    """In the peers' environment: quantises, and saves the matrices that the model multiplies by since."""
    import torch
    from llmcompressor.modeling.moe.linearize import linearize_moe
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    linearize_moe(model)
    rows = load_file(arguments.folder / "rows.safetensors")["rows"]
    run = {"rounding": _llm_compressor, "gptq": _llm_compressor, "autoround": _auto_round}[arguments.peer]
    begun = time.monotonic()
    model = run(arguments, model, rows, AutoTokenizer.from_pretrained(arguments.model)) or model
    seconds = time.monotonic() - begun
    weights = {}
    with torch.no_grad():
        for name, module in model.named_modules():
            width = getattr(module, "in_features", None)
            if width and ".layers." in name and "kv_b_proj" not in name and not name.endswith("mlp.gate"):
                weights[f"{name}.weight"] = module(torch.eye(width)).T.contiguous()
    save_file(weights, arguments.folder / f"{arguments.peer}.safetensors")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    arguments.json.write_text(json.dumps({"seconds": seconds, "peak MB": round(memory / 1e6)}))


def _llm_compressor(arguments: argparse.Namespace, model: Any, rows: Any, tokenizer: Any) -> None:
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    weights = {"num_bits": BITS[arguments.scheme], "type": "int", "symmetric": True, "observer": "mse"}
    by_group = {"strategy": "group", "group_size": arguments.group_size}
    weights |= {"strategy": "channel"} if arguments.scheme == "int8" else by_group
    groups = {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}, "ignore": list(KEPT)}
    if arguments.peer == "rounding":
        oneshot(model=model, recipe=QuantizationModifier(**groups), tokenizer=tokenizer)
        return
    data = Dataset.from_dict({"input_ids": rows.tolist(), "attention_mask": [[1] * TOKENS] * len(rows)})
    oneshot(
        model=model,
        recipe=GPTQModifier(**groups),
        tokenizer=tokenizer,
        dataset=data,
        num_calibration_samples=len(rows),
        max_seq_length=TOKENS,
        moe_calibrate_all_experts=False,
        pipeline="sequential",
    )


def _auto_round(arguments: argparse.Namespace, model: Any, rows: Any, tokenizer: Any) -> Any:
    from auto_round import AutoRound

    scheme = {"bits": BITS[arguments.scheme], "sym": True, "data_type": "int"}
    scheme["group_size"] = -1 if arguments.scheme == "int8" else arguments.group_size
    full = {name: {"bits": 16} for name, _ in model.named_modules() if name.endswith(("kv_b_proj", "mlp.gate"))}
    rounder = AutoRound(
        model,
        tokenizer=tokenizer,
        scheme=scheme,
        layer_config=full,
        dataset=[row[None] for row in rows],
        iters=arguments.iterations,
        seqlen=TOKENS,
        nsamples=len(rows),
        device_map="cpu",
    )
    made, _ = rounder.quantize()
    return made


if __name__ == "__main__":
    main()
