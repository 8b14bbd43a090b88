"""What distillation adds to a run: the target, checked, the text it writes, and its layers to begin with. Knows no
loop."""

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.checkpoint import load_checkpoint
from model.files import replace_file
from model.gpt import GPT
from model.tokenizer import Tokenizer
from training.config import TrainConfig, TrainingError, refuse
from training.dataset import TokenArray
from training.prepare import Material
from training.writing import Texts, Written, write_texts

WRITTEN_FILE = "written.npz"


def load_target(config: TrainConfig, tokenizer: Tokenizer, device: torch.device) -> GPT | None:
    """The target of the run, in float32, or None where the run learns from text.

    Raises TrainingError when its tokens are not those of the run's `tokenizer` or its context is shorter, and
    CheckpointError when the folder holds no usable model.
    """
    folder = config.distill.target
    if folder is None:
        return None
    check_tokens("distill.target", folder, Tokenizer.load(folder), tokenizer)
    target = load_checkpoint(folder, torch.float32, device)
    if target.config.vocab_size != tokenizer.vocab_size:
        limit = f"must have as many rows as tokens: {tokenizer.vocab_size}, not {target.config.vocab_size}"
        refuse("distill.target", folder, limit)
    context, most = config.model.context_length, target.config.context_length
    if context > most:
        refuse("model.context_length", context, f"must be at most the target's {most}")
    return target


def write_material(config: TrainConfig, corpus: Material, target: GPT) -> None:
    """Have `target` write what the run trains and validates on, and keep it in the run's folder."""
    options = config.distill
    writer = copy.deepcopy(target).to(torch.bfloat16 if options.writing_precision == "bfloat16" else torch.float32)
    training = _write(config, corpus.training, writer, options.num_tokens, 1, options.keep_logits)
    validation = _write(config, corpus.validation, writer, options.num_validation_tokens, 2)
    arrays: dict[str, NDArray[np.generic]] = {"training": training.tokens, "validation": validation.tokens}
    if training.logits is not None:
        arrays["logits"] = training.logits
    replace_file(config.out / WRITTEN_FILE, lambda file: np.savez(file, allow_pickle=False, **arrays))


def load_written(config: TrainConfig, corpus: Material) -> Material:
    """`corpus` with the tokens that `write_material` has kept in place of its own."""
    path = config.out / WRITTEN_FILE
    if not path.is_file():
        raise TrainingError(f"{path} does not exist; the run cannot go on without what its target wrote")
    with np.load(path) as arrays:
        logits = arrays["logits"] if config.distill.keep_logits else None
        return replace(corpus, training=arrays["training"], validation=arrays["validation"], target_logits=logits)


def distillation_record(material: Material, target: GPT) -> dict[str, object]:
    """What the recipe says of it beside the configuration: fingerprints of the target's weights and of its text."""
    written = hashlib.sha256(material.training.tobytes() + material.validation.tobytes())
    return {"target_weights_sha256": weights_sha256(target), "written_sha256": written.hexdigest()}


def weights_sha256(model: GPT) -> str:
    """Fingerprint of every parameter, in order: of what a file says, not of how it says it."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def start_from_target(model: GPT, target: GPT) -> None:
    """Give `model` the target's embeddings and final norm, and layers of it, evenly taken from first to last.

    After Sanh et al. 2019 (DistilBERT). Raises TrainingError when a shape differs.
    """
    layers = _spread(model.config.num_layers, target.config.num_layers)
    theirs = target.state_dict()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            source = theirs.get(_name_in_target(name, layers))
            if source is None or source.shape != tensor.shape:
                refuse("distill.start_from_target", True, f"needs a target with the model's shapes; {name} differs")
            tensor.copy_(source)


def _write(
    config: TrainConfig, corpus: TokenArray, target: GPT, num_tokens: int, split: int, keep_logits: bool = False
) -> Written:
    options = config.distill
    if len(corpus) < options.prompt_length:
        raise TrainingError(f"a split has {len(corpus)} tokens; distill.prompt_length is {options.prompt_length}")
    seed = int(np.random.SeedSequence([config.seed, split]).generate_state(1)[0])
    length = config.model.context_length
    texts = Texts(length, options.prompt_length, options.temperatures)
    return write_texts(target, corpus, texts, num_tokens, seed, keep_logits)


def check_tokens(setting: str, folder: Path, theirs: Tokenizer, ours: Tokenizer) -> None:
    """Every token id must stand for the same bytes to both, or the one's weights and logits mean nothing to the other.

    Raises TrainingError that names `setting`, whose value is `folder`.
    """
    if theirs.vocab_size != ours.vocab_size:
        limit = f"must have the run's vocabulary of {ours.vocab_size} tokens, not {theirs.vocab_size}"
        refuse(setting, folder, limit)
    for token in range(ours.vocab_size):
        there, here = theirs.token_bytes(token), ours.token_bytes(token)
        if there != here:
            limit = f"must have the run's tokenizer: token {token} is {there!r} there and {here!r} here"
            refuse(setting, folder, limit)


def _spread(count: int, available: int) -> list[int]:
    """`count` of the layers 0 .. available - 1: the first, the last, and the rest evenly between; one is the first."""
    return [round(place * (available - 1) / max(count - 1, 1)) for place in range(count)]


def _name_in_target(name: str, layers: Sequence[int]) -> str:
    if not name.startswith("layers."):
        return name
    _, layer, rest = name.split(".", 2)
    return f"layers.{layers[int(layer)]}.{rest}"
