"""A deep model begun as a shallow one that is already trained: the same function with room to learn. Knows no loop.

A shallow model of the same width sees several times as many tokens a second. Its layers are taken over, and behind each
stand copies of it that add nothing to the residual stream at first (block expansion, Wu et al. 2024, LLaMA Pro).
"""

from dataclasses import replace

import torch
from torch import Tensor

from model.checkpoint import load_checkpoint
from model.gpt import GPT
from model.tokenizer import Tokenizer
from training.config import TrainConfig, refuse
from training.distill import check_tokens

# What a layer adds to the residual stream comes out of these parameters.
OUTPUTS = ("attention.out.", "feed_forward.down")


def load_base(config: TrainConfig, tokenizer: Tokenizer, device: torch.device) -> GPT | None:
    """The model that the run's begins as, in float32, or None where it begins at random.

    Raises TrainingError when its tokens are not those of the run's `tokenizer`, and CheckpointError when the folder
    holds no usable model.
    """
    folder = config.grow_from
    if folder is None:
        return None
    check_tokens("grow_from", folder, Tokenizer.load(folder), tokenizer)
    return load_checkpoint(folder, torch.float32, device)


def grow(model: GPT, base: GPT) -> None:
    """Make `model` compute what `base` does. Raises TrainingError unless only their numbers of layers may differ."""
    num_layers, num_base = model.config.num_layers, base.config.num_layers
    if replace(base.config, num_layers=num_layers) != model.config:
        refuse("grow_from", base.config, f"must be the run's model but for its layers: {model.config}")
    if num_layers < num_base:
        refuse("model.num_layers", num_layers, f"must be at least grow_from's {num_base}")
    if model.config.norm_placement == "post":
        refuse("model.norm_placement", "post", "cannot grow: a norm follows even a layer that adds nothing")
    theirs = base.state_dict()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(_first_value(name, tensor, theirs, num_layers))


def _first_value(name: str, like: Tensor, theirs: dict[str, Tensor], num_layers: int) -> Tensor:
    """Of the base's parameters what the grown model's parameter `name` begins with."""
    if not name.startswith("layers."):
        return theirs[name]
    _, layer, rest = name.split(".", 2)
    num_base = 1 + max(int(other.split(".")[1]) for other in theirs if other.startswith("layers."))
    place, before = (number * num_base // num_layers for number in (int(layer), int(layer) - 1))
    is_copy = int(layer) > 0 and place == before
    return torch.zeros_like(like) if is_copy and rest.startswith(OUTPUTS) else theirs[f"layers.{place}.{rest}"]
