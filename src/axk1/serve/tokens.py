"""Tokens as log-probabilities name them: their bytes, and text that stands for exactly one token."""

from functools import cache
from typing import Any, cast

from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from axk1.generation.sampling import TokenLogprobs


@cache
def _alphabet() -> dict[str, int]:
    return {character: byte for byte, character in bytes_to_unicode().items()}


class TokenTexts:
    """The texts of a vocabulary.

    Args:
        tokenizer: a fast tokenizer; where it is not byte-level, a token's bytes are those of its decoded text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._added = {id: token.content for id, token in tokenizer.added_tokens_decoder.items()}
        self._byte_level = b"ByteLevel" in tokenizer.backend_tokenizer.decoder.__getstate__()  # pyright: ignore

    def bytes(self, id: int) -> bytes:
        """The bytes that a token stands for: perhaps a part of a character."""
        if id in self._added:
            return self._added[id].encode()
        token = self._tokenizer.convert_ids_to_tokens(id)
        if token is None:
            return b""
        alphabet = _alphabet()
        if self._byte_level and all(character in alphabet for character in token):
            return bytes(alphabet[character] for character in token)
        return cast(str, self._tokenizer.decode([id])).encode()

    def text(self, id: int) -> str:
        """Its text, with replacement characters for parts of characters."""
        return self.bytes(id).decode("utf-8", "replace")

    def name(self, id: int) -> str:
        """Its text, or ``bytes:\\xe2\\x80`` where it is no whole character: a name that no other token has."""
        raw = self.bytes(id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def entry(self, token: TokenLogprobs) -> dict[str, Any]:
        """A token of a chat's ``logprobs.content``."""
        top = [self._entry(id, logprob) for id, logprob in token.top]
        return {**self._entry(token.id, token.logprob), "top_logprobs": top}

    def _entry(self, id: int, logprob: float) -> dict[str, Any]:
        return {"token": self.text(id), "logprob": finite(logprob), "bytes": list(self.bytes(id))}


def finite(logprob: float) -> float:
    """A log-probability as JSON can hold it."""
    return max(logprob, -9999.0)
