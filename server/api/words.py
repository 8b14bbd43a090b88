"""Words and sequence breakers, which clients write as text, to the token sequences the engine knows."""

from collections.abc import Sequence
from functools import lru_cache

from server.api.served_model import Tokenizer
from server.engine.sampling.ranges import MAX_SEQUENCE_TOKENS
from server.errors import BadRequest

Word = str | tuple[int, ...]

# The breakers of DRY's author, and of every engine that has it.
DEFAULT_BREAKERS = ("\n", ":", '"', "*")


def bad_word_tokens(words: Sequence[Word], tokenizer: Tokenizer | None) -> tuple[tuple[int, ...], ...]:
    """Token ids as they are; text as it is tokenized at the start of a text and after a space.

    Raises BadRequest for text that has no tokens. A word spelled with other tokens than the tokenizer's own is not
    recognised, here as everywhere.
    """
    sequences: dict[tuple[int, ...], None] = {}
    for index, word in enumerate(words):
        spellings = (word,) if not isinstance(word, str) else _spellings(word, f"bad_words[{index}]", tokenizer)
        sequences.update(dict.fromkeys(spellings))
    return tuple(sequences)


def breaker_tokens(breakers: Sequence[str], tokenizer: Tokenizer | None) -> tuple[tuple[int, ...], ...]:
    """Every token whose text contains the breaker; if no token does, the breaker's own tokens one after the other.

    Raises BadRequest for text that has no tokens.
    """
    sequences: dict[tuple[int, ...], None] = {}
    for index, breaker in enumerate(breakers):
        single = _tokens_containing(breaker.encode(), tokenizer) if tokenizer is not None else ()
        spellings = single or (_encode(breaker, f"dry_sequence_breakers[{index}]", tokenizer),)
        sequences.update(dict.fromkeys(spellings))
    return tuple(sequences)


def _spellings(word: str, parameter: str, tokenizer: Tokenizer | None) -> list[tuple[int, ...]]:
    plain = _encode(word, parameter, tokenizer)
    spaced = _encode(" " + word, parameter, tokenizer)
    # Where the space is a token of its own, the plain spelling already ends every spaced one.
    return [plain] if spaced[-len(plain) :] == plain else [plain, spaced]


def _encode(text: str, parameter: str, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    tokens = () if tokenizer is None else tuple(tokenizer.encode(text, add_special_tokens=False))
    if not tokens:
        raise BadRequest(f"{parameter} has no tokens in this model's vocabulary.", parameter, "invalid_value")
    if len(tokens) > MAX_SEQUENCE_TOKENS:
        message = f"{parameter} has {len(tokens)} tokens; the limit is {MAX_SEQUENCE_TOKENS}."
        raise BadRequest(message, parameter, "invalid_value")
    return tokens


def _tokens_containing(text: bytes, tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    return tuple((token,) for token, own in enumerate(_vocabulary(tokenizer)) if text in own)  # type: ignore[arg-type]


@lru_cache(maxsize=8)  # by identity: a tokenizer does not change, and each model has one
def _vocabulary(tokenizer: Tokenizer) -> tuple[bytes, ...]:
    """The bytes of every token."""
    return tuple(tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size))
