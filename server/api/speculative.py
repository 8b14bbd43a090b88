"""The `speculative` parameter, and what a request's drafts came to. It knows no way of drafting."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from server.api.validation import StrictModel
from server.engine.types import MAX_DRAFT_TOKENS, DraftMethod, EngineInfo, SequenceOutput, Speculation
from server.errors import BadRequest


class SpeculativeOptions(StrictModel):
    """`speculative` in a request. With `num_tokens` alone the method is the server's, or "auto" where that is "off"."""

    method: DraftMethod | None = None
    num_tokens: Annotated[int, Field(ge=1, le=MAX_DRAFT_TOKENS)] | None = None


def read_speculation(asked: SpeculativeOptions | None, default: Speculation, info: EngineInfo) -> Speculation:
    """Raises BadRequest for the method "draft" of a model without a draft."""
    if asked is None:
        return default
    method = asked.method
    if method is None:
        method = default.method if default.method != "off" or asked.num_tokens is None else "auto"
    if method == "draft" and not info.has_draft_model:
        message = 'speculative.method is "draft", but this model has no draft; use "auto", "ngram", "suffix" or "off".'
        raise BadRequest(message, "speculative.method", "invalid_value")
    return Speculation(method, default.num_tokens if asked.num_tokens is None else asked.num_tokens)


@dataclass
class DraftTally:
    """What drafting came to, of one sequence or several."""

    num_steps: int = 0  # passes through the target that gave tokens
    num_tokens: int = 0  # that they gave
    num_drafted: list[int] = field(default_factory=lambda: [0] * MAX_DRAFT_TOKENS)  # by place, the next token's first
    num_accepted: list[int] = field(default_factory=lambda: [0] * MAX_DRAFT_TOKENS)

    def add(self, output: SequenceOutput, num_tokens: int) -> None:
        """Take in what one step gave a sequence, of which the answer has the first `num_tokens` tokens.

        Drafts behind the end count as rejected, whatever ended the answer. Without drafts each token took a pass.
        """
        if num_tokens:
            self.num_steps += 1 if output.num_drafted else num_tokens
            self.num_tokens += num_tokens
        for place in range(output.num_drafted):
            self.num_drafted[place] += 1
            self.num_accepted[place] += place < min(output.num_accepted, num_tokens)

    def add_plain(self, num_steps: int) -> None:
        """Take in steps that gave a token each, without drafts."""
        self.num_steps += num_steps
        self.num_tokens += num_steps

    @classmethod
    def total(cls, tallies: Iterable["DraftTally"]) -> "DraftTally":
        total = cls()
        for tally in tallies:
            total.num_steps += tally.num_steps
            total.num_tokens += tally.num_tokens
            total.num_drafted = [one + other for one, other in zip(total.num_drafted, tally.num_drafted, strict=True)]
            total.num_accepted = [
                one + other for one, other in zip(total.num_accepted, tally.num_accepted, strict=True)
            ]
        return total

    @property
    def tokens_per_step(self) -> float:
        return self.num_tokens / self.num_steps if self.num_steps else 0.0

    @property
    def acceptance_by_place(self) -> list[float]:
        """For each place that was drafted for, the share that proved right."""
        return [
            accepted / drafted for accepted, drafted in zip(self.num_accepted, self.num_drafted, strict=True) if drafted
        ]
