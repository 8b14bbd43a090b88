"""Plain tokens of a stream, told as they come. It knows no response shape and no HTTP."""

from collections.abc import Sequence
from dataclasses import dataclass

from server.api.choice import Choice
from server.api.detokenizer import WholeTexts
from server.api.direct_send import DirectBody
from server.api.engine_port import Generation
from server.api.event_template import EventTemplate


class TokenTap:
    """Makes one choice's tokens events and writes them, without a turn of the task that reads all other outputs.

    With a step come the tokens of many streams, and each finds the caches full of the others: what this looks at is
    kept small and close together, and the choice learns later.
    """

    __slots__ = ("_before", "_behind", "_body", "_texts", "_told")

    def __init__(self, told: list[int], template: EventTemplate, texts: WholeTexts, body: DirectBody) -> None:
        """Tokens that were told join `told`."""
        self._told = told
        self._before = template.before
        self._behind = template.behind
        self._texts = texts
        self._body = body

    def take(self, tokens: Sequence[int]) -> int:
        """How many it has told: up to a token with a part of a character, and none while the client is not ready."""
        for num_told, token in enumerate(tokens):
            text = self._texts[token]
            if text is None or not self._body.write(self._before + text + self._behind):
                return num_told
            self._told.append(token)
        return len(tokens)


@dataclass(frozen=True)
class Taps:
    """Sets the taps of one request's choices."""

    generation: Generation
    texts: WholeTexts
    body: DirectBody

    def set(self, index: int, choice: Choice, template: EventTemplate) -> None:
        """To be called whenever the choice has taken outputs in, for it may not be ready for any token any more."""
        tap = TokenTap(choice.told, template, self.texts, self.body)
        self.generation.tap(index, tap.take if choice.shows_at_once else None)
