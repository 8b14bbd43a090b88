"""`fork` in place of a prompt: go on from the middle of an earlier answer. It knows no response shape.

The tokens before the fork are part of the prompt, and to everything that looks back the output they were: with the
seed and the parameters of that answer the fork repeats the rest of it. What counts tokens counts from the fork.
"""

from dataclasses import dataclass
from typing import TypeVar

from server.api.admission import Prepared, cache_salt, prepare
from server.api.json_guard import shown
from server.api.parameters import check_choices
from server.api.prompts import TokenizedPrompt
from server.api.recent import RecentAnswer, RecentChoice
from server.api.schemas import CompletionRequest, Fork, asked_seed
from server.api.served_model import ServedModel
from server.api.service import Service
from server.api.words import read_spellings
from server.errors import BadRequest

R = TypeVar("R", bound=CompletionRequest)


@dataclass(frozen=True)
class ForkPoint:
    """The choice that is forked, and where."""

    choice: RecentChoice
    at_token: int

    @property
    def prompt(self) -> TokenizedPrompt:
        tokens = self.choice.prompt + self.choice.tokens[: self.at_token]
        return TokenizedPrompt(tokens, None, "fork", self.choice.num_forked + self.at_token)

    def seeded(self, asked: R) -> R:
        """The request with the choice's seed, unless it has one of its own."""
        return asked.model_copy(update={"seed": self.choice.seed}) if asked_seed(asked) is None else asked


def check_one_source(asked: CompletionRequest, *others: str) -> None:
    """Raises BadRequest unless exactly one of prompt, fork and the fields `others` is given."""
    given = [name for name in ("prompt", "fork", *others) if getattr(asked, name)]
    if not given:
        alternatives = " or ".join((*others, "fork"))
        message = f"prompt is required, unless {alternatives} takes its place."
        raise BadRequest(message, "prompt", "missing_required_parameter")
    if len(given) > 1:
        message = f"{given[1]} is given besides {given[0]}; there must be one of them."
        raise BadRequest(message, given[1], "invalid_value")


async def prepare_fork(service: Service, model: ServedModel, asked: CompletionRequest, tenant: str) -> Prepared:
    """The sequences of a completion that begins with a fork. Raises what `find_fork_point` and `prepare` raise."""
    service.engine.check_admission(model.name, check_choices(asked, 1, service.settings))
    point = find_fork_point(service, model, asked, tenant)
    spellings = await read_spellings(model, [asked])
    return prepare(service, model, point.seeded(asked), [point.prompt], tenant, spellings)


def find_fork_point(service: Service, model: ServedModel, asked: CompletionRequest, tenant: str) -> ForkPoint:
    """Where the request forks from.

    Raises BadRequest: 404 for an answer that is not remembered or somebody else's, 400 for a place it does not have.
    """
    fork = asked.fork
    assert fork is not None
    answer = service.recent.find(fork.id, cache_salt(tenant, asked.cache_salt))
    if answer is None:
        message = f"fork.id is {shown(fork.id)}; no finished answer of that id is remembered."
        raise BadRequest(message, "fork.id", "answer_not_found", 404)
    return ForkPoint(_find_choice(fork, answer, model), fork.at_token)


def _find_choice(fork: Fork, answer: RecentAnswer, model: ServedModel) -> RecentChoice:
    if answer.model != model.name:
        message = f"fork.id is an answer of the model {answer.model}; model is {model.name}, whose tokens may differ."
        raise BadRequest(message, "fork.id", "invalid_value")
    if fork.choice >= len(answer.choices):
        raise _too_large("fork.choice", fork.choice, len(answer.choices) - 1)
    choice = answer.choices[fork.choice]
    if fork.at_token > len(choice.tokens):
        raise _too_large("fork.at_token", fork.at_token, len(choice.tokens))
    return choice


def _too_large(parameter: str, value: int, limit: int) -> BadRequest:
    return BadRequest(f"{parameter} is {value}; it must be at most {limit}.", parameter, "invalid_value")
