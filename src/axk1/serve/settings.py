"""What the server is told: by ``axk1 serve``, or by environment variables that begin with ``AXK1_SERVE_``."""

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

CLOSING = "\n\nThat is enough thinking; the answer follows.\n"


class Settings(BaseSettings):
    """Names, limits and times of a server. Sizes are bytes, times seconds."""

    model_config = SettingsConfigDict(env_prefix="AXK1_SERVE_", extra="forbid")

    names: list[str] = Field(default=["axk1"], min_length=1)
    """What requests may call the model; the first is its name in replies."""
    api_keys: list[SecretStr] = []
    """Clients must send one of them. Each has a prefix tree of its own."""
    hosts: list[str] = ["localhost", "127.0.0.1", "[::1]"]
    """Names under which the server may be asked (the Host header, without port); ``*`` for all."""
    origins: list[str] = []
    """Pages elsewhere that may ask it (the Origin header), such as ``https://example.org``."""
    think: bool = False
    """The mode of requests that do not say."""
    closing: str = CLOSING
    """What is written before ``</think>`` where a budget or "answer now" ends the reasoning."""
    log_prompts: bool = False
    """Whether the log holds what users write."""
    max_body: int = Field(default=4 * 2**20, ge=1024)
    max_messages: int = Field(default=2048, ge=1)
    max_tools: int = Field(default=128, ge=1)
    max_choices: int = Field(default=16, ge=1)
    max_prompts: int = Field(default=64, ge=1)
    """Prompts of one completions request."""
    max_stops: int = Field(default=16, ge=1)
    max_schema: int = Field(default=64 * 1024, ge=1)
    """Of a schema or grammar as JSON."""
    max_schema_depth: int = Field(default=32, ge=1)
    max_pattern: int = Field(default=1024, ge=1)
    """Characters of a regular expression."""
    pages: int | None = None
    """Of the engine, as the three that follow: see :class:`axk1.engine.settings.Settings`, whose defaults hold for what
    is left out."""
    waiting: int | None = None
    prompt_tokens: int | None = None
    stream_interval: float | None = None
    ping: float = Field(default=1.0, gt=0)
    """Between comments that keep a silent stream alive."""
    send_timeout: float = Field(default=60.0, gt=0)
    """A reader that takes nothing for so long is given up."""
    drain: float = Field(default=60.0, ge=0)
    """How long running replies may go on once the server is asked to end."""
