"""A piece of text from the model in training, by the reference decoder. Knows no server."""

import torch
from torch import Tensor

from model.gpt import GPT
from model.reference import generate
from model.tokenizer import Tokenizer
from training.config import SampleOptions


def sample_text(model: GPT, tokenizer: Tokenizer, options: SampleOptions, seed: int) -> str:
    """The prompt's continuation, a function of model and `seed`; ends early at the end of text or of the context."""
    generator = torch.Generator().manual_seed(seed)

    def choose(logits: Tensor, position: int) -> int:
        probabilities = (logits.cpu() / options.temperature).softmax(dim=-1)
        return int(torch.multinomial(probabilities, 1, generator=generator).item())

    prompt = tokenizer.encode(options.prompt, add_special_tokens=False)
    room = model.config.context_length - len(prompt)
    model.eval()
    tokens = generate(model, prompt, choose, min(options.max_tokens, room), frozenset(tokenizer.eos_token_ids))
    model.train()
    return tokenizer.decode(tokens)
