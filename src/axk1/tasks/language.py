"""Korean particles, and telling the five languages apart."""

from __future__ import annotations

import re

_PARTICLE = re.compile(r"([^\s)])(\)*)(은\(는\)|이\(가\)|을\(를\)|과\(와\)|\(으\)로|\(이\))")
_FORMS = {"은(는)": "은는", "이(가)": "이가", "을(를)": "을를", "과(와)": "과와"}
# Whether the Sino-Korean reading of a digit ends in a consonant: 영 일 이 삼 사 오 육 칠 팔 구.
_DIGIT_FINAL = "1101001110"
_LETTER_FINAL = "lmnrLMNR"  # 엘 엠 엔 알
_SPANISH = re.compile(
    r"[ñ¿¡áéíóúü]|\b(el|la|los|las|es|soy|de|en|un|una|hola|gracias|no sé|puedo|que)\b", re.IGNORECASE
)


def _final(letter: str) -> int:
    """Jongseong index of the syllable (0 = none, 8 = ㄹ), by its reading for a digit or a Latin letter."""
    if "가" <= letter <= "힣":
        return (ord(letter) - ord("가")) % 28
    if letter.isdigit():
        return 8 if letter in "178" else int(_DIGIT_FINAL[int(letter)])
    return 8 if letter in "lrLR" else int(letter in _LETTER_FINAL)


def join_particles(text: str) -> str:
    """Resolve `은(는)`, `이(가)`, `을(를)`, `과(와)`, `(으)로` and `(이)` by the syllable before them."""

    def form(match: re.Match[str]) -> str:
        letter, brackets, particle = match.groups()
        final = _final(letter)
        if particle == "(으)로":
            return letter + brackets + ("로" if final in (0, 8) else "으로")
        if particle == "(이)":
            return letter + brackets + ("이" if final else "")
        return letter + brackets + _FORMS[particle][0 if final else 1]

    return _PARTICLE.sub(form, text) if "(" in text else text


def answer_language(text: str) -> str:
    """Language of a reply, one of en, ko, zh, ja, es: by script, and Spanish by its letters and function words."""
    if re.search(r"[가-힣]", text):
        return "ko"
    if re.search(r"[ぁ-ゖァ-ヺ]", text):
        return "ja"
    if re.search(r"[一-鿿]", text):
        return "zh"
    return "es" if _SPANISH.search(text) else "en"
