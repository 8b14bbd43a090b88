"""From a configuration to what the loop needs: corpus, tokenizer, tokens and a fresh model. Writes only tokenizers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.config import ModelConfig
from model.gpt import GPT, initialise
from model.tokenizer import Tokenizer, train_bpe_tokenizer, train_char_tokenizer
from training.config import TrainConfig, TrainingError
from training.corpus import Corpus, Document, read_documents, split_documents
from training.dataset import TokenArray


@dataclass(frozen=True)
class Material:
    """What is learned from, as tokens."""

    tokenizer: Tokenizer
    training: TokenArray
    validation: TokenArray
    corpus_sha256: str
    target_logits: NDArray[np.float16] | None = None  # of the training tokens: [texts, context - 1, vocab]


def read_corpus(config: TrainConfig) -> Corpus:
    """The documents that the configuration names, split."""
    return split_documents(read_documents(config.data.path), config.data.validation_fraction)


def make_tokenizer(config: TrainConfig, corpus: Corpus) -> Tokenizer:
    """A tokenizer for the corpus: characters of all of it, or pairs merged by the training split alone."""
    limit = config.model.vocab_size
    if config.data.tokenizer == "char":
        every = corpus.training + corpus.validation
        tokenizer = train_char_tokenizer("".join(document.text for document in every))
    else:
        try:
            tokenizer = train_bpe_tokenizer((document.text for document in corpus.training), limit)
        except ValueError as error:
            raise TrainingError(f"model.{error}") from error
    if tokenizer.vocab_size > limit:
        raise TrainingError(f"model.vocab_size is {limit}; the tokenizer has {tokenizer.vocab_size} entries")
    return tokenizer


def tokenize(corpus: Corpus, tokenizer: Tokenizer) -> Material:
    """The corpus as tokens; each of several documents is followed by the end of text."""
    end = [] if corpus.is_one_document else list(tokenizer.eos_token_ids[:1])
    return Material(
        tokenizer,
        _encode(corpus.training, tokenizer, end),
        _encode(corpus.validation, tokenizer, end),
        corpus.fingerprint(),
    )


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that a run has saved beside its checkpoint."""
    return Tokenizer.load(folder)


def build_model(config: TrainConfig, vocab_size: int, device: torch.device) -> GPT:
    """A model with fresh weights, a function of the configuration's seed alone; in training mode."""
    shape: ModelConfig = replace(config.model, vocab_size=vocab_size)
    model = GPT(shape, config.dropout)
    initialise(model, torch.Generator().manual_seed(config.seed))
    return model.to(device).train()


def _encode(documents: Sequence[Document], tokenizer: Tokenizer, end: list[int]) -> TokenArray:
    parts = [tokenizer.encode(document.text, add_special_tokens=False) + end for document in documents]
    return np.concatenate([np.array(part, dtype=np.int32) for part in parts])
