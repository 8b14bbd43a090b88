"""Requests that together use every sampling parameter, as a pure function of a seed."""

import random
from dataclasses import replace

from tiny_models import CONTEXT_LENGTH, VOCAB_SIZE

from server.engine.params import SamplingParams
from server.engine.types import SequenceRequest

_KINDS: tuple[SamplingParams, ...] = (
    SamplingParams(temperature=0.0, logprobs=3),
    SamplingParams(logprobs=0),
    SamplingParams(temperature=0.8, top_k=20, top_p=0.9, logprobs=5),
    SamplingParams(temperature=1.5, min_p=0.05, ignore_eos=True, prompt_logprobs=2),
    SamplingParams(temperature=0.0, repetition_penalty=1.3, ignore_eos=True, logprobs=1),
    SamplingParams(presence_penalty=0.9, frequency_penalty=0.4, logprobs=2),
    SamplingParams(logit_bias=((5, 4.0), (11, -100.0)), stop_token_ids=(5, 17), min_tokens=6, logprobs=1),
    SamplingParams(temperature=0.0, prompt_logprobs=0, logprobs=20, stop_token_ids=tuple(range(60, 97))),
    SamplingParams(temperature=2.0, repetition_penalty=0.7, top_p=0.5, banned_tokens=(1, 2, 3), ignore_eos=True),
    SamplingParams(allowed_tokens=tuple(range(20, 50)), frequency_penalty=-1.5, logprobs=4, ignore_eos=True),
)


def request_mix(
    count: int, seed: int = 0, max_prompt: int = 100, max_tokens: int = 24, first_id: int = 0
) -> list[SequenceRequest]:
    """`count` requests; every third prompt begins like another one, and their outputs end at different steps."""
    generator = random.Random(seed)
    stem = tuple(generator.randrange(VOCAB_SIZE) for _ in range(max_prompt))
    requests = []
    for index in range(count):
        length = generator.randint(1, max_prompt)
        prompt = tuple(generator.randrange(VOCAB_SIZE) for _ in range(length))
        if index % 3 == 0:
            shared = generator.randint(0, length)
            prompt = stem[:shared] + prompt[shared:]
        kind = _KINDS[index % len(_KINDS)]
        num_tokens = max(kind.min_tokens, generator.randint(1, min(max_tokens, CONTEXT_LENGTH - length)))
        params = replace(kind, max_tokens=num_tokens, seed=generator.getrandbits(64))
        requests.append(SequenceRequest(first_id + index, prompt, params))
    return requests


def several(request: SequenceRequest, count: int, first_id: int) -> list[SequenceRequest]:
    """What n = count becomes: one sequence per choice, each with its own seed."""
    return [
        replace(request, id=first_id + index, params=replace(request.params, seed=request.params.seed // 2 + index))
        for index in range(count)
    ]
