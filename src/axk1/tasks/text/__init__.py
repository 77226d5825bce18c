"""Text tables of the five languages, one module a language, and one for its plain conversation."""

from __future__ import annotations

from axk1.tasks.text import chat_en, chat_es, chat_ja, chat_ko, chat_zh, en, es, ja, ko, zh
from axk1.tasks.types import Intent, Tables

_CHAT = {"en": chat_en, "ko": chat_ko, "zh": chat_zh, "ja": chat_ja, "es": chat_es}

TABLES: dict[str, Tables] = {module.TABLES.language: module.TABLES for module in (en, ko, zh, ja, es)}
INTENTS: dict[str, dict[str, Intent]] = {language: module.INTENTS for language, module in _CHAT.items()}
PREFIXES: dict[str, tuple[str, ...]] = {language: module.PREFIXES for language, module in _CHAT.items()}
