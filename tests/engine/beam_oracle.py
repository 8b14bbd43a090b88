"""Beam search as its rules are told, over the reference decoder: the whole of every text again for every token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model.gpt import GPT
from model.reference import sequence_logits
from server.engine.params import SamplingParams
from server.engine.types import BeamSearch


@dataclass(frozen=True)
class Text:
    """An output, complete or not, and the sum of its log-probabilities."""

    tokens: tuple[int, ...] = ()
    total: float = 0.0


@dataclass(frozen=True)
class Found:
    """A hypothesis and its score."""

    tokens: tuple[int, ...]
    score: float


def log_probabilities(model: GPT, prompt: Sequence[int], text: Text, params: SamplingParams) -> list[float]:
    """After `text`, float64, with the penalties and constraints this oracle knows."""
    tokens = [*prompt, *text.tokens]
    values: list[float] = sequence_logits(model, tokens)[-1].double().log_softmax(-1).tolist()
    for token in params.banned_tokens:
        values[token] = -torch.inf
    for token, bias in params.logit_bias:
        values[token] += bias
    for token in set(tokens):
        value = values[token]
        values[token] = value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
    for token in set(text.tokens):
        values[token] -= params.frequency_penalty * text.tokens.count(token) + params.presence_penalty
    return values


class GroupOracle:
    """One group."""

    def __init__(self, rules: BeamSearch, params: SamplingParams, endings: frozenset[int]) -> None:
        self.texts = [Text()]
        self.found: list[Found] = []
        self.is_done = False
        self._size = rules.width // rules.num_groups
        self._rules = rules
        self._params = params
        self._endings = endings

    def step(self, model: GPT, prompt: Sequence[int], pushed_back: Sequence[int]) -> list[int]:
        """One token more for every text; the tokens chosen. `pushed_back` are those earlier groups chose."""
        everything = [
            Text((*text.tokens, token), text.total + value - self._rules.diversity_penalty * pushed_back.count(token))
            for text in self.texts
            for token, value in enumerate(log_probabilities(model, prompt, text, self._params))
            if value > -torch.inf
        ]
        everything.sort(key=lambda text: -text.total)
        length = len(everything[0].tokens)
        for text in everything[: self._size]:
            if text.tokens[-1] in self._endings or length == self._params.max_tokens:
                self.found.append(Found(text.tokens, text.total / length**self._rules.length_penalty))
        self.found = sorted(self.found, key=lambda found: -found.score)[: self._size]
        self.texts = [text for text in everything if text.tokens[-1] not in self._endings][: self._size]
        self.is_done = length == self._params.max_tokens or not self.texts or self._is_settled(length)
        return [text.tokens[-1] for text in self.texts] if length < self._params.max_tokens else []

    def _is_settled(self, length: int) -> bool:
        if len(self.found) < self._size:
            return False
        if self._rules.early_stopping is True:
            return True
        exponent = self._rules.length_penalty
        if self._rules.early_stopping == "never" and exponent > 0:
            length = self._params.max_tokens
        return self.texts[0].total / length**exponent <= self.found[-1].score


def beam_oracle(
    model: GPT, prompt: Sequence[int], params: SamplingParams, rules: BeamSearch, endings: frozenset[int]
) -> list[Found]:
    """Every hypothesis found, the best first."""
    groups = [GroupOracle(rules, params, endings) for _ in range(rules.num_groups)]
    while not all(group.is_done for group in groups):
        chosen: list[int] = []
        for group in groups:
            if not group.is_done:
                chosen += group.step(model, prompt, chosen)
    return sorted((found for group in groups for found in group.found), key=lambda found: -found.score)
