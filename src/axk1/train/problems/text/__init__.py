"""Text tables of the five languages, one module a language, and one for its plain conversation."""

from __future__ import annotations

from axk1.train.problems.text import chat_en, chat_es, chat_ja, chat_ko, chat_zh, en, es, ja, ko, zh
from axk1.train.problems.types import Intent, Tables

TABLES: dict[str, Tables] = {module.TABLES.language: module.TABLES for module in (en, ko, zh, ja, es)}
INTENTS: dict[str, dict[str, Intent]] = {
    "en": chat_en.INTENTS,
    "ko": chat_ko.INTENTS,
    "zh": chat_zh.INTENTS,
    "ja": chat_ja.INTENTS,
    "es": chat_es.INTENTS,
}
