"""`axk1 serve --engine`: the model on vLLM or SGLang, with sizes that fit the machine."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from axk1.integrations.launch.order import Engine, Order
    from axk1.plan.hardware import Hardware
    from axk1.plan.weights import Weights

DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Cluster:
    """What is asked for; the fields are the command's options.

    Raises:
        ValueError: for one that is out of range.
    """

    model: str
    engine: "Engine"
    host: str = "127.0.0.1"
    port: int = 8000
    gpus: int | None = None
    nodes: int = 1
    gpu_memory: float | None = None
    device: str | None = None
    weights: str | None = None
    dtype: str = "auto"
    length: int | None = None
    mtp: int = 0
    think: bool = False
    api_key: str | None = None
    tensor: int | None = None
    pipeline: int | None = None
    data: int | None = None
    expert: bool | None = None
    max_requests: int = 64
    step_tokens: int = 8192
    fraction: float | None = None
    head: str | None = None
    node_rank: int | None = None
    ray_address: str | None = None
    dry_run: bool = False
    as_json: bool = False
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        from axk1.integrations.launch.order import ENGINES

        if self.engine not in ENGINES:
            raise ValueError(f"--engine is {self.engine!r}; use {' or '.join(ENGINES)}.")
        if self.dtype not in DTYPES:
            raise ValueError(f"--dtype is {self.dtype!r}; use {', '.join(DTYPES)}. Quantised weights: axk1 quantize.")
        for option, value, least, most in (
            ("--mtp", self.mtp, 0, 2**16),
            ("--port", self.port, 1, 2**16 - 1),
            ("--tensor", self.tensor, 1, 2**16),
            ("--pipeline", self.pipeline, 1, 2**16),
            ("--data", self.data, 1, 2**16),
            ("--max-requests", self.max_requests, 1, 2**20),
            ("--step-tokens", self.step_tokens, 1, 2**24),
        ):
            if value is not None and not least <= value <= most:
                end = f" and at most {most}" if value > most else ""
                raise ValueError(f"{option} is {value}; it must be at least {least}{end}.")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(f"--fraction is {self.fraction}; it must be above 0 and at most 1.")

    @property
    def only_shown(self) -> bool:
        """Whether the plan is printed and nothing started."""
        return self.dry_run or self.as_json


def serve_cluster(asked: Cluster) -> None:
    """Prints the plan and starts the engine; ends with its exit code."""
    from axk1.integrations.launch import explain, run, sglang, vllm
    from axk1.integrations.launch.order import check_formats
    from axk1.load import resolve_hub_name
    from axk1.plan.hardware import find_hardware

    if asked.weights is None:
        asked = replace(asked, model=str(resolve_hub_name(asked.model)))
    found = _weights(asked.model, asked.weights, asked.mtp)
    check_formats(asked.engine, found)
    hardware = find_hardware(asked.nodes, asked.gpus, asked.gpu_memory, asked.device)
    python = run.find_engine(asked.engine)
    order = replace(_order(asked, hardware, found), loader=run.fast_loader(asked.engine, python))
    make = vllm.commands if asked.engine == "vllm" else sglang.commands
    ranks = range(asked.nodes) if asked.node_rank is None and asked.only_shown else [order.rank]
    machines = {rank: make(replace(order, rank=rank), str(python or "python")) for rank in ranks}
    if asked.as_json:
        typer.echo(json.dumps(explain.to_dict(order, machines), indent=2))
        return
    typer.echo("\n".join([explain.explanation(order, found), *explain.command_lines(machines)]))
    if asked.dry_run:
        return
    if python is None:
        raise ValueError(run.missing(asked.engine))
    raise typer.Exit(run.run(machines[order.rank], typer.echo))


def _order(asked: Cluster, hardware: "Hardware", found: "Weights") -> "Order":
    """What is to be started, with sizes that fit.

    Raises:
        ValueError: nothing fits.
    """
    from axk1.integrations.launch.order import SPARE, Order
    from axk1.plan.memory import Step
    from axk1.plan.placement import Wish, choose_with_share

    step = Step(max(asked.step_tokens // (asked.data or 1), 1), asked.max_requests)
    wish = Wish(asked.tensor, asked.pipeline, asked.data, asked.expert, asked.length, asked.mtp)
    try:
        choice, fraction = choose_with_share(found, hardware, wish, step, asked.fraction, SPARE[asked.engine])
    except ValueError as error:
        raise ValueError(hardware.words(str(error))) from None
    return Order(
        model=asked.model,
        engine=asked.engine,
        hardware=hardware,
        choice=choice,
        step=step,
        fraction=fraction,
        per_expert=found.per_expert,
        host=asked.host,
        port=asked.port,
        dtype=asked.dtype,
        drafts=asked.mtp,
        think=asked.think,
        api_key=asked.api_key,
        head=asked.head or ("HEAD" if asked.only_shown else None),
        rank=asked.node_rank or 0,
        ray_address=asked.ray_address or (os.environ.get("RAY_ADDRESS") if asked.engine == "vllm" else None),
        extra=asked.extra,
    )


def _weights(model: str, stored: str | None, drafts: int) -> "Weights":
    """The tensors of the checkpoint, without its MTP module where it does not draft."""
    from axk1.plan.weights import read_weights, released_weights, without_mtp

    if Path(model, "config.json").is_file():
        if stored is not None:
            raise ValueError(f"--weights is for models elsewhere; {model} is here and says itself how it is stored.")
        found = read_weights(Path(model))
        if drafts and not found.config.num_nextn_predict_layers:
            raise ValueError(f"{model} has no MTP module, as the released checkpoint; leave --mtp out.")
        return found if drafts else without_mtp(found)
    if stored is None:
        raise ValueError(
            f"There is no checkpoint at {model}. If it is the released model and lies elsewhere, add how it is stored, "
            "such as --weights bf16."
        )
    return released_weights(stored, mtp=drafts > 0)
