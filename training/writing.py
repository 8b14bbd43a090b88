"""Text that a model writes after prompts from a corpus: many sequences at once, past keys and values kept. Knows no
optimiser and no file."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.attention import alibi_bias, fused_attention, visible_keys
from model.config import ModelConfig
from model.gpt import GPT, Attend
from model.positions import alibi_slopes
from training.config import TrainingError
from training.dataset import TokenArray
from training.native_reading import NativeReader, native_lowering

LogitArray = NDArray[np.float16]
SEQUENCES_AT_ONCE = 128  # more rows per product gain nothing on a CPU: reading the cache is what takes the time


@dataclass(frozen=True)
class Texts:
    """What the written texts are like."""

    length: int  # tokens of each, the prompt's included; at most the writer's context
    prompt_length: int
    temperatures: tuple[float, ...]  # the texts take turns; 0 is greedy


@dataclass(frozen=True)
class Written:
    """Whole texts, one after another, and maybe what their writer thought of every next token."""

    tokens: TokenArray  # [texts * length]
    logits: LogitArray | None = None  # [texts, length - 1, vocab]: no token comes after the last


def write_texts(
    model: GPT, corpus: TokenArray, texts: Texts, num_tokens: int, seed: int, keep_logits: bool = False
) -> Written:
    """At least `num_tokens` tokens.

    Each text begins with tokens from a random place of `corpus` and goes on as `model` has it. A function of the
    arguments alone, on one machine. Raises TrainingError where the model's logits are not finite.
    """
    length, prompt_length = texts.length, texts.prompt_length
    num_texts = -(-num_tokens // length)
    starts = np.random.default_rng(seed).integers(len(corpus) - prompt_length + 1, size=num_texts)
    prompts = torch.from_numpy(corpus[starts[:, None] + np.arange(prompt_length)].astype(np.int64))
    heats = torch.tensor(texts.temperatures, dtype=torch.float32)[torch.arange(num_texts) % len(texts.temperatures)]
    device = model.embedding.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    parts = [torch.split(each.to(device), SEQUENCES_AT_ONCE) for each in (prompts, heats)]
    pairs = zip(parts[0], parts[1], strict=True)
    new_reader = readers(model)
    pieces: list[Tensor] = []
    kept: list[Tensor] = []
    for prompt, heat in pairs:
        passes: list[Tensor] | None = [] if keep_logits else None
        pieces.append(continuations(new_reader, prompt, heat, length, generator, passes))
        if passes is not None:
            kept.append(torch.cat(passes, dim=1))
    tokens = torch.cat(pieces).flatten().cpu().numpy().astype(np.int32)
    return Written(tokens, torch.cat(kept).cpu().numpy() if keep_logits else None)


class Reader(Protocol):
    """A model that reads texts piece by piece."""

    def read(self, tokens: Tensor, start: int, is_last_enough: bool) -> Tensor:
        """Logits [texts, tokens or 1, vocab] float32 of the texts' next tokens [texts, tokens], from position `start`
        on; of the last one alone if that is enough."""
        ...


NewReader = Callable[[int, int], Reader]  # of so many texts, of so many tokens each


def continuations(
    new_reader: NewReader,
    prompts: Tensor,
    temperatures: Tensor,
    length: int,
    generator: torch.Generator,
    passes: list[Tensor] | None = None,
) -> Tensor:
    """Texts [texts, length] that begin with prompts [texts, prompt], drawn at temperatures [texts].

    The logits of each pass over them, [texts, tokens of the pass, vocab] float16, are added to `passes`.
    Raises TrainingError where one of them is not finite.
    """
    reader = new_reader(len(prompts), length)
    pieces = [prompts]
    with torch.inference_mode():
        for start in _starts(prompts.shape[1], length):
            read = reader.read(pieces[-1], start, is_last_enough=passes is None)
            if not read.isfinite().all():
                raise TrainingError("the logits of the model that writes are not finite: its weights are damaged")
            logits = read[:, -1]
            if passes is not None:
                passes.append(read.half())
            # The arg-max of logits / T + Gumbel noise draws from their softmax; times T, it is greedy at T = 0.
            noise = -torch.empty_like(logits).exponential_(generator=generator).log()
            pieces.append((logits + temperatures[:, None] * noise).argmax(-1, keepdim=True))
    return torch.cat(pieces, dim=1)


class TorchReader:
    """Any model on any device."""

    def __init__(self, model: GPT, length: int) -> None:
        self._model = model
        self._cache = KeyValueCache(model.config, length, model.embedding.weight)

    def read(self, tokens: Tensor, start: int, is_last_enough: bool) -> Tensor:
        """See `Reader.read`."""
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        hidden = self._model(tokens, positions, self._cache.attend(positions))
        return self._model.unembed(hidden[:, -1:] if is_last_enough else hidden)


def readers(model: GPT) -> NewReader:
    """By the native back end where that is the faster one; the weights are packed once for all of them."""
    weight = model.embedding.weight
    is_for_native = weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    lowering = native_lowering(model) if is_for_native else None
    if lowering is None:
        return lambda _, length: TorchReader(model, length)
    return lambda num_texts, length: NativeReader(lowering, num_texts, length)


class KeyValueCache:
    """Keys and values of sequences that grow in step, [texts, length, kv_heads, head_dim] per layer."""

    def __init__(self, config: ModelConfig, length: int, like: Tensor) -> None:
        """Room for `length` tokens, on the device and in the type of the tensor `like`."""
        self.config = config
        self.length = length
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.slopes = alibi_slopes(config.num_heads).to(like.device) if config.positions == "alibi" else None

    def attend(self, positions: Tensor) -> Attend:
        """The `Attend` of a forward pass over the next tokens, at `positions` [tokens]: it adds them and looks back."""
        end = int(positions[-1]) + 1
        keys = torch.arange(end, device=positions.device)
        visible = visible_keys(positions, keys, self.config.sliding_window)
        bias = None if self.slopes is None else alibi_bias(self.slopes, positions, keys)

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            past = self._append(layer, key, value, end)
            query, key, value = (part.transpose(1, 2) for part in (query, *past))
            return fused_attention(query, key, value, visible, bias).transpose(1, 2)

        return attend

    def _append(self, layer: int, key: Tensor, value: Tensor, end: int) -> tuple[Tensor, Tensor]:
        if layer not in self.layers:
            shape = (key.shape[0], self.length, *key.shape[2:])
            self.layers[layer] = (key.new_empty(shape), value.new_empty(shape))
        keys, values = self.layers[layer]
        keys[:, end - key.shape[1] : end] = key
        values[:, end - key.shape[1] : end] = value
        return keys[:, :end], values[:, :end]


def _starts(prompt_length: int, length: int) -> Iterator[int]:
    """Where each forward pass begins: the prompt as a whole, then token by token; the last token is never read."""
    yield 0
    yield from range(prompt_length, length - 1)
