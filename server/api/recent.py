"""Answers given of late, as tokens, so that a client can go back into one of his own. Knows no text and no HTTP."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from server.engine.types import SequenceRequest

# Of each tenant: some eight megabytes, and what a tenant does never pushes out another's.
MAX_ANSWERS = 1_024
MAX_TOKENS = 262_144


@dataclass(frozen=True, slots=True)
class RecentChoice:
    """What one sequence began with and what its client was shown of its output."""

    prompt: tuple[int, ...]
    num_forked: int  # last tokens of the prompt that were output before
    tokens: tuple[int, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class RecentAnswer:
    """The choices of one answer. `owner` is the cache salt of its sequences, which tells tenants and salts apart."""

    owner: str
    model: str
    choices: tuple[RecentChoice, ...]

    @classmethod
    def of(cls, model: str, sequences: Sequence[SequenceRequest], outputs: Sequence[Sequence[int]]) -> "RecentAnswer":
        """`outputs` are the tokens shown of each sequence."""
        choices = tuple(
            RecentChoice(sequence.prompt, sequence.num_forked, tuple(tokens), sequence.params.seed)
            for sequence, tokens in zip(sequences, outputs, strict=True)
        )
        return cls(sequences[0].cache_salt, model, choices)

    @property
    def num_tokens(self) -> int:
        """Those it keeps alive: choices of one prompt share it."""
        prompts = {id(choice.prompt): len(choice.prompt) for choice in self.choices}
        return sum(prompts.values()) + sum(len(choice.tokens) for choice in self.choices)


class RecentAnswers:
    """The answers last given or asked for, for each tenant as many as the bounds allow."""

    def __init__(self, max_answers: int = MAX_ANSWERS, max_tokens: int = MAX_TOKENS) -> None:
        self._max_answers = max_answers
        self._max_tokens = max_tokens
        self._shelves: dict[str, _Shelf] = {}  # by tenant; there are as many as API keys

    def keep(self, id_: str, answer: RecentAnswer) -> None:
        """Remember an answer, and forget the oldest for it. One beyond the bounds by itself is not remembered."""
        if answer.num_tokens > self._max_tokens:
            return
        shelf = self._shelves.setdefault(_tenant_of(answer.owner), _Shelf())
        shelf.put(id_, answer)
        while len(shelf) > self._max_answers or shelf.num_tokens > self._max_tokens:
            shelf.drop_oldest()

    def find(self, id_: str, owner: str) -> RecentAnswer | None:
        """The owner's answer of that name; None for one of anybody else's, as for one that never was."""
        shelf = self._shelves.get(_tenant_of(owner))
        return None if shelf is None else shelf.find(id_, owner)


class _Shelf:
    """One tenant's answers, those not asked for in the longest time first."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self._answers: OrderedDict[str, RecentAnswer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def put(self, id_: str, answer: RecentAnswer) -> None:
        self._answers[id_] = answer
        self.num_tokens += answer.num_tokens

    def drop_oldest(self) -> None:
        _, answer = self._answers.popitem(last=False)
        self.num_tokens -= answer.num_tokens

    def find(self, id_: str, owner: str) -> RecentAnswer | None:
        answer = self._answers.get(id_)
        if answer is None or answer.owner != owner:
            return None
        self._answers.move_to_end(id_)
        return answer


def _tenant_of(owner: str) -> str:
    """A cache salt begins with the tenant, see `admission.cache_salt`."""
    return owner.partition("|")[0]
