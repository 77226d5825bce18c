"""`axk1 serve` without ``--engine``: our own server, on this machine."""

import socket
import webbrowser
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from axk1.engine.settings import Settings as EngineSettings
    from axk1.serve.settings import Settings

SCRIPTED = "scripted:"


@dataclass(frozen=True)
class Here:
    """What is asked for; the fields are the command's options."""

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    device: str | None = None
    dtype: str = "auto"
    mtp: int | None = None
    think: bool = False
    api_key: str | None = field(default=None, repr=False)
    max_requests: int = 32
    name: list[str] = field(default_factory=list)
    allow_host: list[str] = field(default_factory=list)
    allow_origin: list[str] = field(default_factory=list)
    closing: str | None = None
    open_page: bool = False
    expert_cache: str | None = None


def serve_here(asked: Here) -> None:
    """Loads the model, then listens until the process is asked to end.

    Raises:
        ValueError: for an option that is wrong, or packages that are missing.
    """
    try:
        from axk1.serve.run import listen, run
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name} is not installed here; the server needs pip install '.[serve]' in axk1's clone."
        ) from error
    if not 0 <= asked.port < 65536:
        raise ValueError(f"--port is {asked.port}; it must be between 0 (a free one) and 65535.")
    if asked.max_requests < 1:
        raise ValueError(f"--max-requests is {asked.max_requests}; it must be at least 1.")
    if asked.mtp is not None and asked.mtp < 0:
        raise ValueError(f"--mtp is {asked.mtp}; it must be at least 0.")
    listen(asked.host, asked.port).close()  # an address that cannot be had is said before the model is loaded
    settings = _settings(asked)
    engine, tokenizer, stop_ids = _engine(asked, settings)
    if not _is_loopback(asked.host) and not settings.api_keys:
        typer.echo(f"Everybody who reaches {asked.host} may ask this server; --api-key asks for a key.", err=True)

    def ready(address: str) -> None:
        typer.echo(f"{settings.names[0]} answers at {address}")
        if asked.open_page:
            webbrowser.open(address)

    run(engine, tokenizer, stop_ids, settings, asked.host, asked.port, ready)


def _settings(asked: Here) -> "Settings":
    from pydantic import SecretStr, ValidationError

    from axk1.serve.settings import Settings

    given: dict[str, Any] = {"names": asked.name or _names(asked.model)}  # what is left out, the environment may say
    if keys := [SecretStr(key.strip()) for key in (asked.api_key or "").split(",") if key.strip()]:
        given["api_keys"] = keys
    if asked.think:
        given["think"] = True
    if asked.closing is not None:
        given["closing"] = asked.closing
    try:
        settings = Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"AXK1_SERVE_{'_'.join(map(str, first['loc'])).upper()}: {first['msg']}.") from None
    hosts = [*settings.hosts, *asked.allow_host, *([] if _is_loopback(asked.host) else [socket.gethostname().lower()])]
    return settings.model_copy(update={"hosts": hosts, "origins": [*settings.origins, *asked.allow_origin]})


def _names(model: str) -> list[str]:
    """What requests may call the model: its folder's name, ``axk1``, and the argument as it is."""
    if model.startswith(SCRIPTED):
        return ["scripted", "axk1"]
    return list(dict.fromkeys([Path(model).resolve().name, "axk1", model]))


def _engine(asked: Here, settings: "Settings") -> tuple[Any, Any, Any]:
    """Engine, tokenizer, and the ids that end a turn."""
    if asked.model.startswith(SCRIPTED):
        if asked.expert_cache is not None:
            raise ValueError("--expert-cache is for a model; scripted replies have none.")
        from axk1.chat.session import TURN_ENDS
        from axk1.engine.scripted import ScriptedEngine, read_scripts
        from axk1.load import load_tokenizer, resolve_model_path

        checkpoint, scripts, pace = read_scripts(Path(asked.model.removeprefix(SCRIPTED)))
        tokenizer = load_tokenizer(resolve_model_path(checkpoint))
        return ScriptedEngine(tokenizer, scripts, pace), tokenizer, [tokenizer.get_vocab()[end] for end in TURN_ENDS]
    from axk1.chat import Chat
    from axk1.engine.engine import ModelEngine
    from axk1.load import load

    how = _engine_settings(asked, settings)
    chat = Chat(*load(asked.model, device=asked.device, dtype=asked.dtype, expert_cache=asked.expert_cache))
    return ModelEngine(chat.model, how), chat.tokenizer, chat.stop_ids


def _engine_settings(asked: Here, settings: "Settings") -> "EngineSettings":
    """How the engine runs: what the options and the environment say, else its own defaults."""
    from axk1.engine.settings import Settings as EngineSettings
    from axk1.generation.speculate import Drafts

    names = ("pages", "waiting", "prompt_tokens", "stream_interval")
    given = {name: value for name in names if (value := getattr(settings, name)) is not None}
    drafts = Drafts() if asked.mtp is None else Drafts(asked.mtp)
    return EngineSettings(streams=asked.max_requests, drafts=drafts, **given)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
