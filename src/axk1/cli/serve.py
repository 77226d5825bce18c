"""`axk1 serve`: the model on vLLM or SGLang, with sizes that fit the machine."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from axk1.plan.weights import Weights

DTYPES = ("auto", "bfloat16", "float16", "float32")


def serve(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="Checkpoint folder or name on the hub, or with --weights a path elsewhere.")
    ],
    engine: Annotated[str | None, typer.Option(help="vllm or sglang.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    gpus: Annotated[int | None, typer.Option(help="GPUs of a machine. Default: those found.")] = None,
    nodes: Annotated[int, typer.Option(help="Machines; axk1 serve runs on each.")] = 1,
    gpu_memory: Annotated[float | None, typer.Option(help="GB of one GPU. Default: as found.")] = None,
    device: Annotated[str | None, typer.Option(help="cuda or cpu (a trial: the engines' CPU builds).")] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="MODEL is the released one, not on this machine, stored as bf16, fp8, int8 or int4."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Number format to compute in: auto, bfloat16, float16, float32.")] = "auto",
    length: Annotated[int | None, typer.Option("--context", help="Tokens of a request. Default: what fits.")] = None,
    mtp: Annotated[int, typer.Option(help="Tokens that the MTP module drafts a step; 0: none.")] = 0,
    think: Annotated[
        bool, typer.Option("--think/--no-think", help="What requests get that do not say; they may choose.")
    ] = False,
    api_key: Annotated[
        str | None, typer.Option(help="Clients must send it.", envvar="AXK1_API_KEY", show_envvar=True)
    ] = None,
    tensor: Annotated[int | None, typer.Option(help="Tensor-parallel size.")] = None,
    pipeline: Annotated[int | None, typer.Option(help="Pipeline stages.")] = None,
    data: Annotated[int | None, typer.Option(help="Copies of the attention.")] = None,
    expert: Annotated[bool | None, typer.Option("--expert/--no-expert", help="Whole experts on each GPU.")] = None,
    max_requests: Annotated[int, typer.Option(help="Requests answered at once.")] = 64,
    step_tokens: Annotated[int, typer.Option(help="Tokens of one step, prompts included.")] = 8192,
    fraction: Annotated[float, typer.Option(help="Part of a GPU's memory to use.")] = 0.9,
    head: Annotated[str | None, typer.Option(help="Address of the first machine.")] = None,
    node_rank: Annotated[int | None, typer.Option(help="Number of this machine, from 0.")] = None,
    ray_address: Annotated[str | None, typer.Option(help="A running Ray cluster (vllm).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and the command, start nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON, start nothing.")] = False,
) -> None:
    """Serve an OpenAI-compatible API with vLLM or SGLang. Arguments behind -- go to the engine as they are."""
    from axk1.integrations.launch import explain, run, sglang, vllm
    from axk1.integrations.launch.order import ENGINES, SPARE, Order
    from axk1.load import resolve_hub_name
    from axk1.plan.hardware import find_hardware
    from axk1.plan.memory import Step
    from axk1.plan.placement import Wish, choose

    if engine not in ENGINES:
        given = "missing" if engine is None else repr(engine)
        raise ValueError(f"--engine is {given}; use {' or '.join(ENGINES)}.")
    if dtype not in DTYPES:
        raise ValueError(f"--dtype is {dtype!r}; use {', '.join(DTYPES)}. Quantised weights: axk1 quantize.")
    for option, value, least in (
        ("--mtp", mtp, 0),
        ("--max-requests", max_requests, 1),
        ("--step-tokens", step_tokens, 1),
    ):
        if value < least:
            raise ValueError(f"{option} is {value}; it must be at least {least}.")
    if not 0 < fraction <= 1:
        raise ValueError(f"--fraction is {fraction}; it must be above 0 and at most 1.")
    if weights is None:
        model = str(resolve_hub_name(model))
    hardware = find_hardware(nodes, gpus, gpu_memory, device)
    found = _weights(model, weights, mtp)
    copies = data or 1
    step = Step(max(step_tokens // copies, 1), max_requests)
    wish = Wish(tensor, pipeline, data, expert, length, mtp)
    try:
        choice = choose(found, hardware, wish, step, fraction, SPARE[engine])
    except ValueError as error:
        raise ValueError(hardware.words(str(error))) from None
    order = Order(
        model=model,
        engine=engine,
        hardware=hardware,
        choice=choice,
        step=step,
        fraction=fraction,
        host=host,
        port=port,
        dtype=dtype,
        drafts=mtp,
        think=think,
        api_key=api_key,
        head=head or ("HEAD" if dry_run or as_json else None),
        rank=node_rank or 0,
        ray_address=ray_address or (os.environ.get("RAY_ADDRESS") if engine == "vllm" else None),
        extra=tuple(context.args),
    )
    python = run.find_engine(engine)
    make = vllm.commands if engine == "vllm" else sglang.commands
    ranks = range(nodes) if node_rank is None and (dry_run or as_json) else [order.rank]
    machines = {rank: make(replace(order, rank=rank), str(python or "python")) for rank in ranks}
    if as_json:
        typer.echo(json.dumps(explain.to_dict(order, machines), indent=2))
        return
    typer.echo("\n".join([explain.explanation(order, found), *explain.command_lines(machines)]))
    if dry_run:
        return
    if python is None:
        raise ValueError(run.missing(engine))
    raise typer.Exit(run.run(machines[order.rank], typer.echo))


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
