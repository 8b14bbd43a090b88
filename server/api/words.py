"""Words and sequence breakers, which clients write as text, to the token sequences the engine knows."""

from collections.abc import Iterable, Mapping, Sequence

from anyio.to_thread import run_sync

from server.api.schemas import GenerationRequest, asked_parameters
from server.api.served_model import ServedModel
from server.api.settings import LONG_TEXT
from server.engine.sampling.ranges import MAX_SEQUENCE_TOKENS
from server.errors import BadRequest

Tokens = tuple[int, ...]
Word = str | Tokens

# The breakers of DRY's author, and of every engine that has it.
DEFAULT_BREAKERS = ("\n", ":", '"', "*")
# The fields without which there is nothing to look up.
_WORDY = frozenset({"bad_words", "dry_multiplier", "dry_sequence_breakers"})
# Of the time it takes to tokenize a word, what does not depend on its length, in characters.
_PER_WORD = 10


class Spellings:
    """What a request's words are in tokens. Each is looked up once, in however many of its strategies it occurs."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self._words: dict[str, tuple[Tokens, ...]] = {}
        self._breakers: dict[str, tuple[Tokens, ...]] = {}

    def of_word(self, word: str) -> tuple[Tokens, ...]:
        """At the start of a text and after a space; empty sequences for text that has no tokens."""
        if word not in self._words:
            plain, spaced = self._encode(word), self._encode(" " + word)
            # Where the space is a token of its own, the plain spelling already ends every spaced one.
            self._words[word] = (plain,) if spaced[-len(plain) :] == plain else (plain, spaced)
        return self._words[word]

    def of_breaker(self, breaker: str) -> tuple[Tokens, ...]:
        """Every token whose text contains it; if no token does, its own tokens one after the other."""
        if breaker not in self._breakers:
            text = breaker.encode()
            single = tuple((token,) for token, own in enumerate(self._model.token_bytes) if text in own)
            self._breakers[breaker] = single or (self._encode(breaker),)
        return self._breakers[breaker]

    def _encode(self, text: str) -> Tokens:
        return tuple(self._model.tokenizer.encode(text, add_special_tokens=False))


async def read_spellings(model: ServedModel, requests: Sequence[GenerationRequest]) -> Spellings:
    """Look up what the requests hold. Much of it is done in a worker thread, so that other requests' streams go on."""
    spellings = Spellings(model)
    if all(request.model_fields_set.isdisjoint(_WORDY) for request in requests):
        return spellings
    asked = [asked_parameters(request) for request in requests]
    words, breakers = _texts(asked, "bad_words"), _texts(asked, "dry_breakers")

    def look_up() -> None:
        for word in words:
            spellings.of_word(word)
        for breaker in breakers:
            spellings.of_breaker(breaker)

    num_characters = sum(2 * len(word) + _PER_WORD for word in words)
    is_long = num_characters + len(breakers) * model.tokenizer.vocab_size > LONG_TEXT
    await run_sync(look_up) if is_long else look_up()
    return spellings


def bad_word_tokens(words: Sequence[Word], spellings: Spellings) -> tuple[Tokens, ...]:
    """Token ids as they are; text as it is tokenized at the start of a text and after a space.

    Raises BadRequest for text that has no tokens. A word spelled with other tokens than the tokenizer's own is not
    recognised, here as everywhere.
    """
    sequences: dict[Tokens, None] = {}
    for index, word in enumerate(words):
        own = (word,) if not isinstance(word, str) else _checked(spellings.of_word(word), f"bad_words[{index}]")
        sequences.update(dict.fromkeys(own))
    return tuple(sequences)


def breaker_tokens(breakers: Sequence[str], spellings: Spellings) -> tuple[Tokens, ...]:
    """Every token whose text contains the breaker; if no token does, the breaker's own tokens one after the other.

    Raises BadRequest for text that has no tokens.
    """
    sequences: dict[Tokens, None] = {}
    for index, breaker in enumerate(breakers):
        own = _checked(spellings.of_breaker(breaker), f"dry_sequence_breakers[{index}]")
        sequences.update(dict.fromkeys(own))
    return tuple(sequences)


def _texts(asked: Iterable[Mapping[str, object]], name: str) -> list[str]:
    """The different texts in a parameter of the requests; the usual breakers where DRY is asked for without any."""
    texts: dict[str, None] = {}
    for own in asked:
        usual = DEFAULT_BREAKERS if name == "dry_breakers" and own.get("dry_multiplier") else ()
        listed = own.get(name, usual)
        assert isinstance(listed, tuple)
        texts.update(dict.fromkeys(text for text in listed if isinstance(text, str)))
    return list(texts)


def _checked(spellings: tuple[Tokens, ...], parameter: str) -> tuple[Tokens, ...]:
    for tokens in spellings:
        if not tokens:
            raise BadRequest(f"{parameter} has no tokens in this model's vocabulary.", parameter, "invalid_value")
        if len(tokens) > MAX_SEQUENCE_TOKENS:
            message = f"{parameter} has {len(tokens)} tokens; the limit is {MAX_SEQUENCE_TOKENS}."
            raise BadRequest(message, parameter, "invalid_value")
    return spellings
