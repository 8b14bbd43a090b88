"""A draft model's checkpoint, and whether it speaks the target's language."""

from pathlib import Path

import torch

from model.checkpoint import load_checkpoint
from model.config_json import read_config
from model.gpt import GPT
from model.tokenizer import Tokenizer


def load_draft(draft: Path, target: Path, dtype: torch.dtype, device: torch.device) -> GPT:
    """The model in `draft`, to guess for the one in `target`.

    Raises CheckpointError for a folder that cannot be loaded, ValueError for another vocabulary than the target's.
    """
    own, others = read_config(draft).vocab_size, read_config(target).vocab_size
    if own != others:
        raise ValueError(f"draft {draft} has a vocabulary of {own} tokens; it must be the model's {others}")
    theirs, ours = Tokenizer.load(target), Tokenizer.load(draft)
    for token in range(others):
        if ours.token_bytes(token) != theirs.token_bytes(token):
            raise ValueError(
                f"draft {draft} has another vocabulary: token {token} is {ours.token_bytes(token)!r}, "
                f"for the model {theirs.token_bytes(token)!r}"
            )
    return load_checkpoint(draft, dtype, device)
