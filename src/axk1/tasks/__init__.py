"""Problems in five languages that need several steps, with reasoning that takes them one at a time.

Training and held-out problems differ in numbers, names and wordings; `generate` yields either. No torch in here.
"""

from axk1.tasks.generate import conversations, dialogues, different, generate, messages
from axk1.tasks.language import answer_language
from axk1.tasks.scoring import score
from axk1.tasks.types import LANGUAGES, TASKS, Problem, Split, is_held_out

__all__ = [
    "LANGUAGES",
    "TASKS",
    "Problem",
    "Split",
    "answer_language",
    "conversations",
    "dialogues",
    "different",
    "generate",
    "is_held_out",
    "messages",
    "score",
]
