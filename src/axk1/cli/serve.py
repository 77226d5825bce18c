"""`axk1 serve`: the model on our own server, or on vLLM or SGLang with sizes that fit the machine."""

from dataclasses import fields
from typing import Annotated, Any

import typer

from axk1.cli.chat_options import ExpertCache

ENGINE_OPTIONS = {
    "gpus": "--gpus",
    "nodes": "--nodes",
    "gpu_memory": "--gpu-memory",
    "weights": "--weights",
    "length": "--context",
    "tensor": "--tensor",
    "pipeline": "--pipeline",
    "data": "--data",
    "expert": "--expert",
    "step_tokens": "--step-tokens",
    "fraction": "--fraction",
    "head": "--head",
    "node_rank": "--node-rank",
    "ray_address": "--ray-address",
    "dry_run": "--dry-run",
    "as_json": "--json",
}
"""What only a cluster's engine takes."""
OWN_OPTIONS = {
    "name": "--name",
    "allow_host": "--allow-host",
    "allow_origin": "--allow-origin",
    "closing": "--closing",
    "open_page": "--open",
    "expert_cache": "--expert-cache",
}
"""What only our own server takes."""


def serve(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="Checkpoint folder or name on the hub; with --weights a path elsewhere; scripted:FILE for replies "
            "from a file."
        ),
    ],
    engine: Annotated[str | None, typer.Option(help="vllm or sglang. Default: axk1's own, one machine.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for a free one.")] = 8000,
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
    mtp: Annotated[
        int | None,
        typer.Option(help="Tokens that the MTP module drafts a step; 0: none. Default: what pays (engines: 0)."),
    ] = None,
    think: Annotated[
        bool, typer.Option("--think/--no-think", help="What requests get that do not say; they may choose.")
    ] = False,
    api_key: Annotated[
        str | None,
        typer.Option(help="Clients must send it (or one of several, comma between).", envvar="AXK1_API_KEY"),
    ] = None,
    name: Annotated[list[str] | None, typer.Option(help="What requests call the model; repeatable.")] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name under which the server may be asked; repeatable, * for all.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A page elsewhere that may ask it, as https://example.org; repeatable.")
    ] = None,
    closing: Annotated[
        str | None, typer.Option(help="What is written before </think> where a budget ends the reasoning.")
    ] = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the page in this machine's browser once the server answers.")
    ] = False,
    expert_cache: ExpertCache = None,
    tensor: Annotated[int | None, typer.Option(help="Tensor-parallel size.")] = None,
    pipeline: Annotated[int | None, typer.Option(help="Pipeline stages.")] = None,
    data: Annotated[int | None, typer.Option(help="Copies of the attention.")] = None,
    expert: Annotated[bool | None, typer.Option("--expert/--no-expert", help="Whole experts on each GPU.")] = None,
    max_requests: Annotated[
        int | None, typer.Option(help="Requests answered at once. Default: 32 (engines: 64).")
    ] = None,
    step_tokens: Annotated[int, typer.Option(help="Tokens of one step, prompts included.")] = 8192,
    fraction: Annotated[
        float | None,
        typer.Option(help="Part of a GPU's memory to use. Default: 0.9, up to 0.97 where that is too little."),
    ] = None,
    head: Annotated[str | None, typer.Option(help="Address of the first machine.")] = None,
    node_rank: Annotated[int | None, typer.Option(help="Number of this machine, from 0.")] = None,
    ray_address: Annotated[str | None, typer.Option(help="A running Ray cluster (vllm).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and the command, start nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON, start nothing.")] = False,
) -> None:
    """Serve the APIs of OpenAI and Anthropic. Without --engine: axk1's own server, on one machine.

    Arguments after -- go to vLLM or SGLang as they are.
    """
    if engine is None:
        _refuse(
            context, ENGINE_OPTIONS, "--engine is missing; use vllm or sglang (or leave out {}: only they read it)."
        )
        if context.args:
            raise ValueError(f"{context.args[0]!r} is not read: arguments after -- are for --engine vllm or sglang.")
        from axk1.cli.serve_here import Here, serve_here

        serve_here(Here(**_params(context, Here)))
        return
    _refuse(context, OWN_OPTIONS, "{} are for axk1's own server; leave --engine out.")
    from axk1.cli.serve_cluster import Cluster, serve_cluster

    serve_cluster(Cluster(**_params(context, Cluster), extra=tuple(context.args)))


def _params(context: typer.Context, kind: Any) -> dict[str, Any]:
    """The command's options that ``kind``, a dataclass, has a field for; those left out keep its defaults."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in context.params.items() if name in names and value is not None}


def _refuse(context: typer.Context, options: dict[str, str], sentence: str) -> None:
    """Raises ``ValueError`` where one of ``options`` was given on the command line."""
    sources = {name: context.get_parameter_source(name) for name in options}
    given = [options[name] for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        raise ValueError(sentence.format(", ".join(given)))
