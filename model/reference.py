"""The reference decoder: no cache, no batch, the whole sequence again for every token. Slow and hard to get wrong."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model.attention import causal_attend, explicit_attention
from model.gpt import GPT

# (logits [vocab] float32, position the chosen token will stand at) -> token id
Choose = Callable[[Tensor, int], int]


def sequence_logits(model: GPT, tokens: Sequence[int]) -> Tensor:
    """Logits [len(tokens), vocab] of every position of one sequence, by the written-out attention."""
    device = model.embedding.weight.device
    ids = torch.tensor([list(tokens)], device=device)
    attend = causal_attend(model.config, len(tokens), device, explicit_attention)
    with torch.inference_mode():
        hidden = model(ids, torch.arange(len(tokens), device=device), attend)
        return model.unembed(hidden[0])


def generate(model: GPT, prompt: Sequence[int], choose: Choose, max_tokens: int, stop: frozenset[int]) -> list[int]:
    """Up to `max_tokens` tokens after `prompt`, ending with the first token in `stop` (which is included)."""
    tokens = list(prompt)
    while len(tokens) - len(prompt) < max_tokens:
        tokens.append(choose(sequence_logits(model, tokens)[-1], len(tokens)))
        if tokens[-1] in stop:
            break
    return tokens[len(prompt) :]
