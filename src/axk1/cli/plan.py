"""`axk1 plan`: what fits where, what a token costs, and how fast it can be at most."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from axk1.cli.info import size_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from axk1.plan.machines import Machine
    from axk1.plan.weights import Weights


def plan(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Checkpoint folder, config.json, preset, or name on the hub (its config.json alone is read). "
            "Default: the released K1."
        ),
    ] = None,
    machine: Annotated[str, typer.Option(help="here, or a common machine; --machines lists them.")] = "here",
    machines: Annotated[bool, typer.Option("--machines", help="List the machines, and stop.")] = False,
    scheme: Annotated[
        str | None,
        typer.Option(help="Format of the weights: bf16, fp8, int8, int4, int4-64, int3, mlx-4, q4_k, ... As stored."),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="axk1, vllm, sglang, ktransformers, llamacpp or mlx. Default: by machine.")
    ] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of each request. Default: 8192.")] = None,
    requests: Annotated[int, typer.Option(help="Requests at once.")] = 1,
    prompt: Annotated[int | None, typer.Option(help="Tokens of a prompt computed in one step.")] = None,
    hit_rate: Annotated[
        float | None, typer.Option(help="Share of wanted experts found in memory, 0 to 1. Default: as chance has it.")
    ] = None,
    memory: Annotated[float | None, typer.Option(help="GB of the machine's memory.")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="GB/s of it.")] = None,
    flops: Annotated[float | None, typer.Option(help="TFLOP/s of its processor.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of a machine.")] = None,
    gpu_memory: Annotated[float | None, typer.Option(help="GB of one.")] = None,
    gpu_bandwidth: Annotated[float | None, typer.Option(help="GB/s of it.")] = None,
    gpu_flops: Annotated[float | None, typer.Option(help="TFLOP/s of it.")] = None,
    nodes: Annotated[int | None, typer.Option(help="Machines.")] = None,
    disk: Annotated[float | None, typer.Option(help="GB/s of large reads.")] = None,
    link: Annotated[float | None, typer.Option(help="GB/s between GPUs of a machine, one direction.")] = None,
    network: Annotated[float | None, typer.Option(help="GB/s of each GPU to other machines.")] = None,
    fraction: Annotated[
        float | None, typer.Option(help="Part of a GPU's memory for vllm or sglang. Default: 0.9, or what it needs.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure this machine's memory, products and the model's disk first.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """What fits where, bytes and operations of a token, bounds of speed, the first limit, and what would change it.

    Arithmetic only: no weight is read or downloaded.
    """
    from axk1.plan import fit as plans
    from axk1.plan.machines import described, find_machine
    from axk1.plan.report import to_dict

    if machines:
        _list_machines(as_json)
        return
    if hit_rate is not None and not 0 <= hit_rate <= 1:
        raise ValueError(f"--hit-rate is {hit_rate}; it must be from 0 to 1.")
    if engine is not None and engine not in plans.ENGINES:
        raise ValueError(f"--engine is {engine!r}; use {', '.join(plans.ENGINES)}.")
    chosen = find_machine(machine)
    if measure:
        chosen = _measured(chosen, Path(model) if model and Path(model).is_dir() else Path())
    chosen = described(
        chosen,
        memory=memory,
        bandwidth=bandwidth,
        flops=flops,
        gpus=gpus,
        gpu_memory=gpu_memory,
        gpu_bandwidth=gpu_bandwidth,
        gpu_flops=gpu_flops,
        nodes=nodes,
        disk=disk,
        link=link,
        network=network,
    )
    how: Any = engine or plans.default_engine(chosen)
    name, weights = _weights(model, scheme, plans.default_format(how))
    longest = weights.config.max_position_embeddings
    tokens = context or min(8192, longest)
    load = plans.Load(tokens, requests, prompt or min(2048, tokens))
    data = to_dict(name, plans.fit(weights, chosen, how, load, fraction), hit_rate, fraction)
    if as_json:
        typer.echo(json.dumps(data, indent=2))
    else:
        show(data)


def _weights(model: str | None, scheme: str | None, default: str) -> "tuple[str, Weights]":
    """The model's name and tensors: as stored where a folder holds them, else in ``scheme`` or ``default``."""
    from axk1.checkpoint.hub import HubId, hub_config
    from axk1.config import PRESETS, AXK1Config
    from axk1.plan.weights import config_weights, read_config, read_weights, weights_as

    path = Path(model or "k1")
    if model is None or (model in PRESETS and not path.exists()):
        name = model or "k1"
        return name, weights_as(AXK1Config.preset(name), scheme or default)
    if path.is_dir() and any(path.glob("*.safetensors")):
        found = read_weights(path)
        return str(path), weights_as(found.config, scheme) if scheme else found
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        wanted = HubId.parse(model)
        if wanted is None:
            raise ValueError(
                f"{model!r} is no checkpoint, no config.json and no preset ({', '.join(sorted(PRESETS))})."
            )
        file = hub_config(wanted)
    values = read_config(file)
    return model, config_weights(values, scheme or (None if "quantization_config" in values else default))


def _measured(machine: "Machine", folder: Path) -> "Machine":
    """``machine``, which is this one, with the rates that it reaches now.

    Raises:
        ValueError: it is a described one.
    """
    from dataclasses import replace

    from axk1.bench.rates import measure_machine
    from axk1.cli.streams import status
    from axk1.plan.disks import read_rate

    if machine.name != "this machine":
        raise ValueError(f"--measure is for this machine; {machine.name} is not here.")
    with status("Measuring memory, products and the disk"):
        bandwidth, flops = measure_machine("cpu")
        host = replace(machine.host, bandwidth=bandwidth, flops=flops)
        gpu = machine.gpu
        if gpu:
            bandwidth, flops = measure_machine("cuda")
            gpu = replace(gpu, bandwidth=bandwidth, flops=flops)
        disk = read_rate(folder)
    return replace(machine, host=host, gpu=gpu, disk=disk, rates="measured now")


def _list_machines(as_json: bool) -> None:
    from dataclasses import asdict

    from axk1.plan.machines import PRESETS

    if as_json:
        typer.echo(json.dumps({name: asdict(machine) for name, machine in PRESETS.items()}, indent=2))
        return
    table = _table("--machine", "what it is", "memory", "GPU", "disk")
    for name, at in PRESETS.items():
        gpu = _rate(at.gpu.bandwidth) if at.gpu else ""
        table.add_row(name, str(at), _rate(at.host.bandwidth), gpu, _rate(at.disk))
    _console().print(table)


def show(data: dict[str, Any]) -> None:
    """The tables of a plan."""
    console, model, load = _console(), data["model"], data["load"]
    console.print(
        f"[bold]{model['name']}[/bold] in {model['stored']}: {size_text(model['bytes'])}, "
        f"{model['bits_per_weight']:.2f} bits per weight; {model['parameters']:,} parameters, "
        f"{model['active_parameters']:,} active"
    )
    console.print(f"on {data['machine']['text']} ({data['machine']['rates']}), by {data['engine']}")
    for reason in data["reasons"]:
        console.print(f"  {reason}")
    if data["places"]:
        console.print(_places(data))
    console.print(
        f"Latents: {model['latent_bytes_per_token']:,} B per token; {load['requests']} x {load['context']:,} tokens "
        f"take {size_text(model['latent_bytes'])}."
    )
    console.print(
        f"A token: {size_text(model['bytes_per_token'])} of weights read, "
        f"{model['flops_per_token'] / 1e9:,.1f} GFLOP at the end of the context."
    )
    if data["process"]:
        text = "its mapped files and the copies of what every token reads included"
        console.print(f"axk1 itself takes {size_text(data['process']['total'])} at most, {text}.")
    if data["fits"]:
        console.print(_speeds(data))
    if data["curve"]:
        console.print(_curve(data))
    console.print(f"First limit: {data['limit']}.", style="" if data["fits"] else "yellow")
    for change in data["changes"][:6]:
        speed = f": at most {_number(change['bound'])} tokens/s" if change["bound"] else ""
        console.print(f"  {'it fits with' if not data['fits'] else 'with'} {change['what']}{speed}")


def _places(data: dict[str, Any]) -> "Table":
    parts = list(dict.fromkeys(part for place in data["places"] for part in place["weights"]))
    names = [f"{place['name']}{' x ' + str(place['count']) if place['count'] > 1 else ''}" for place in data["places"]]
    table = _table("each holds", *names)
    for part in parts:
        table.add_row(part, *(_size(place["weights"].get(part, 0)) for place in data["places"]))
    for row in ("latents", "activations", "reserve"):
        table.add_row(row, *(_size(place[row]) for place in data["places"]))
    table.add_section()
    for row in ("used", "usable", "free"):
        table.add_row(row, *(_size(place[row]) for place in data["places"]))
    if data["experts_on_disk"]:
        share = f"{1 - data['experts_in_memory']:.0%} of the experts"
        table.add_row("on disk", *[""] * (len(names) - 1), f"{_size(data['experts_on_disk'])}, {share}")
    return table


def _speeds(data: dict[str, Any]) -> "Table":
    table = _table("one step", "decoding", f"a prompt of {data['load']['prompt']:,}")
    steps = (data["decode"], data["prefill"])
    for name in dict.fromkeys(name for step in steps for name in step["bytes"]):
        table.add_row(f"read from {name}", *(_size(step["bytes"].get(name, 0)) for step in steps))
    table.add_row("operations", *(f"{step['flops'] / 1e12:,.2f} TFLOP" for step in steps))
    for name in dict.fromkeys(name for step in steps for name in step["seconds"]):
        times = (step["seconds"].get(name) for step in steps)
        table.add_row(f"time of {name}", *(f"{1e3 * time:,.2f} ms" if time is not None else "" for time in times))
    table.add_section()
    table.add_row("bound, tokens/s", *(_number(step["bound"]) for step in steps), style="bold")
    table.add_row("one after the other", *(_number(step["in_turns"]) for step in steps))
    return table


def _curve(data: dict[str, Any]) -> "Table":
    table = _table("hits", "cache for it", "read per token", "bound, tokens/s")
    for point in data["curve"]:
        cells = (_size(point["cache"]), _size(point["disk_bytes"]), _number(point["bound"]))
        table.add_row(f"{point['hits']:.0%}", *cells)
    return table


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False)


def _table(*titles: str) -> "Table":
    from rich.table import Table

    table = Table(titles[0])
    for title in titles[1:]:
        table.add_column(title, justify="right")
    return table


def _size(size: float) -> str:
    return ("-" if size < 0 else "") + size_text(round(abs(size))) if size else ""


def _rate(rate: float | None) -> str:
    return f"{rate / 1e9:,.0f} GB/s" if rate else ""


def _number(value: float | None) -> str:
    if value is None:
        return "not known"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
