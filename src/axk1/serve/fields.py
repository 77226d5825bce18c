"""Every field that a request may have, in three classes: honoured, inert, refused.

An inert field changes no token: it is taken and named in the reply's header ``x-axk1-ignored``, as is a field that
nobody knows. A refused one would change the answer, so it is an error that names it, unless its value asks for what
happens anyway. Null is the same as left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from axk1.serve.errors import Refusal

HEADER = "x-axk1-ignored"
HONOURED, INERT, REFUSED = "honoured", "inert", "refused"


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a field is refused, and the values that are taken because they change nothing."""

    instead: str
    neutral: tuple[Any, ...] = ()


_INERT = ("store", "metadata", "user", "service_tier", "prompt_cache_key", "safety_identifier")
_CACHE = ("prompt_cache_options", "prompt_cache_retention")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty", "presence_penalty")
_OPENAI = (*_SAMPLING, "frequency_penalty", "logit_bias", "stop", "stop_token_ids", "min_tokens", "ignore_eos")
_COMMON = ("model", "stream", "stream_options", "n", "max_tokens", "structured_outputs", "cache_salt", *_OPENAI)
_EXTRAS = {
    "best_of": Refused("use n", (1,)),
    "bad_words": Refused("use logit_bias", ([],)),
    "allowed_token_ids": Refused("use logit_bias or structured_outputs", ([],)),
    "use_beam_search": Refused("there is no beam search", (False,)),
    "length_penalty": Refused("there is no beam search", (1, 1.0)),
    "truncate_prompt_tokens": Refused("shorten the prompt", (-1,)),
    "include_stop_str_in_output": Refused("a stop string is never part of the reply", (False,)),
    "logits_processors": Refused("no code is taken from requests", ([],)),
    "guided_json": Refused("use response_format or structured_outputs"),
    "guided_regex": Refused("use structured_outputs"),
    "guided_choice": Refused("use structured_outputs"),
    "guided_grammar": Refused("use structured_outputs"),
}
_MEDIA = {
    "audio": Refused("only text is written"),
    "modalities": Refused("only text is written", (["text"], [])),
}

HONOURED_FIELDS: dict[str, tuple[str, ...]] = {
    "/v1/chat/completions": (
        *_COMMON,
        "messages",
        "max_completion_tokens",
        "logprobs",
        "top_logprobs",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "chat_template_kwargs",
        "enable_thinking",
        "reasoning_effort",
        "thinking",
        "thinking_budget",
        "thinking_token_budget",
        "budget_tokens",
    ),
    "/v1/completions": (
        *_COMMON,
        "prompt",
        "echo",
        "logprobs",
        "prompt_logprobs",
        "add_special_tokens",
        "skip_special_tokens",
    ),
    "/v1/responses": (
        "model",
        "input",
        "instructions",
        "stream",
        "max_output_tokens",
        "reasoning",
        "text",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "top_logprobs",
        "include",
        "chat_template_kwargs",
        "thinking_budget",
        "thinking_token_budget",
        "budget_tokens",
        *_SAMPLING,
        "frequency_penalty",
        "logit_bias",
        "ignore_eos",
        "cache_salt",
    ),
    "/v1/messages": (
        "model",
        "messages",
        "system",
        "max_tokens",
        "stop_sequences",
        "stream",
        "temperature",
        "top_p",
        "top_k",
        "tools",
        "tool_choice",
        "thinking",
        "output_config",
        "chat_template_kwargs",
    ),
    "/v1/messages/count_tokens": ("model", "messages", "system", "tools", "tool_choice", "thinking"),
}
"""What the answer depends on, by route."""

INERT_FIELDS: dict[str, tuple[str, ...]] = {
    "/v1/chat/completions": (*_INERT, *_CACHE, "verbosity", "moderation", "skip_special_tokens", "add_special_tokens"),
    "/v1/completions": ("user", "service_tier"),
    "/v1/responses": (
        *_INERT,
        *_CACHE,
        "truncation",
        "max_tool_calls",
        "moderation",
        "stream_options",
        "access_programs",
        "background_options",
        "context_management",
    ),
    "/v1/messages": (
        "metadata",
        "service_tier",
        "cache_control",
        "inference_geo",
        "speed",
        "diagnostics",
        "user_profile_id",
        "workspace_id",
        "context_management",
        "betas",
    ),
    "/v1/messages/count_tokens": (
        "cache_control",
        "output_config",
        "speed",
        "user_profile_id",
        "workspace_id",
        "context_management",
        "betas",
    ),
}
"""What is taken and changes nothing, by route."""

REFUSED_FIELDS: dict[str, dict[str, Refused]] = {
    "/v1/chat/completions": {
        **_EXTRAS,
        **_MEDIA,
        "chat_template": Refused("only the checkpoint's template is used"),
        "documents": Refused("write them into a message", ([],)),
        "functions": Refused("use tools", ([],)),
        "function_call": Refused("use tool_choice", ("none", "auto")),
        "prediction": Refused("drafts are the MTP module's"),
        "web_search_options": Refused("nothing is searched"),
        "continue_final_message": Refused("replies begin anew", (False,)),
        "add_generation_prompt": Refused("replies begin anew", (True,)),
        "echo": Refused("use /v1/completions", (False,)),
        "prompt_logprobs": Refused("use /v1/completions", (0,)),
    },
    "/v1/completions": {**_EXTRAS, "suffix": Refused("a prompt is only continued", ("",))},
    "/v1/responses": {
        "previous_response_id": Refused("nothing is stored; send the whole input"),
        "conversation": Refused("nothing is stored; send the whole input"),
        "background": Refused("stream the response", (False,)),
        "prompt": Refused("there are no stored prompts"),
        "image": Refused("only text is written"),
        "stop": Refused("this API has none; use /v1/chat/completions"),
        **_MEDIA,
    },
    "/v1/messages": {
        "mcp_servers": Refused("no other server is asked", ([],)),
        "container": Refused("nothing is run"),
        "compaction": Refused("shorten the conversation"),
        "fallbacks": Refused("there is one model", ([],)),
        "fallback_credit_token": Refused("there is one model"),
        "thread": Refused("nothing is stored; send all messages"),
    },
    "/v1/messages/count_tokens": {"mcp_servers": Refused("no other server is asked", ([],))},
}
"""What would change the answer and is not done, by route."""


def ignored(route: str, others: Mapping[str, Any]) -> list[str]:
    """The fields among ``others``, those that the route's body does not read, that were taken and change nothing.

    Raises:
        Refusal: one of them would change the answer.
    """
    named = []
    for field, value in others.items():
        if value is None:
            continue
        rule = REFUSED_FIELDS[route].get(field)
        if rule is None:
            named.append(field)
        elif value not in rule.neutral:
            raise Refusal(f"{field} is not supported here: {rule.instead}.", param=field, code="unsupported_field")
    return sorted(named)


def header(names: list[str]) -> dict[str, str]:
    """The header that names ``names``, where there are any."""
    plain = [name.encode("ascii", "backslashreplace").decode()[:100] for name in dict.fromkeys(names)][:64]
    clean = ["".join(c if c.isprintable() and c not in ", " else "?" for c in name) or "?" for name in plain]
    return {HEADER: ", ".join(clean)} if clean else {}
