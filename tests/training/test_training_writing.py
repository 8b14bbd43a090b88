"""The text that a model writes for its students: equal to the reference decoder's, and drawn at its temperature."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from training_runs import TINY, TINY_GPT2, TINY_MOE, fresh_model

from model.config import ModelConfig
from model.gpt import GPT
from model.native.lowering import Lowering
from model.reference import generate, sequence_logits
from training import writing
from training.config import TrainingError
from training.native_reading import NativeReader, native_lowering
from training.writing import Texts, TorchReader, continuations, readers, write_texts

CORPUS = np.arange(100, dtype=np.int32)
TINY_ALIBI = replace(TINY, positions="alibi", sliding_window=5)


@pytest.mark.parametrize("config", [TINY, TINY_GPT2, TINY_MOE, TINY_ALIBI])
def test_greedy_texts_equal_the_reference_decoders(config: ModelConfig) -> None:
    model = fresh_model(config)
    prompts = torch.tensor([[3, 1, 4], [1, 5, 9]])
    written = continuations(readers(model), prompts, torch.zeros(2), 16, torch.Generator())
    for prompt, text in zip(prompts.tolist(), written.tolist(), strict=True):
        expected = generate(model, prompt, lambda logits, position: int(logits.argmax()), 13, frozenset())
        assert text == prompt + expected


@pytest.mark.parametrize("config", [TINY, TINY_GPT2, TINY_MOE, TINY_ALIBI])
def test_the_native_back_end_reads_as_torch_does(config: ModelConfig) -> None:
    model = fresh_model(config).bfloat16()
    lowering = native_lowering(model)
    assert lowering is not None
    native, torch_reader = NativeReader(lowering, 2, 16), TorchReader(model, 16)
    for start, tokens in ((0, [[3, 1, 4], [1, 5, 9]]), (3, [[2], [6]]), (4, [[5], [3]])):
        piece = torch.tensor(tokens)
        with torch.inference_mode():
            expected = torch_reader.read(piece, start, is_last_enough=False)
        given = native.read(piece, start, is_last_enough=False)
        torch.testing.assert_close(given, expected, atol=5e-3, rtol=0)
        assert given.shape == (2, piece.shape[1], config.vocab_size)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_from_the_distribution_at_the_temperature(temperature: float) -> None:
    model = fresh_model(replace(TINY, vocab_size=12))
    with torch.no_grad():
        model.embedding.weight.mul_(3)  # far from uniform, and from one token alone
    count = 4_000
    prompts, heats = torch.full((count, 1), 7), torch.full((count,), temperature)
    drawn = continuations(readers(model), prompts, heats, 2, torch.Generator().manual_seed(0))[:, 1]
    expected = (sequence_logits(model, [7])[-1].double() / temperature).softmax(-1) * count
    assert expected.min() > 5
    assert chisquare(drawn.bincount(minlength=12), expected).pvalue > 1e-3


def test_texts_begin_with_pieces_of_the_corpus_and_take_turns_at_the_temperatures() -> None:
    model = fresh_model(TINY)
    written = write_texts(model, CORPUS, Texts(16, 3, (0.0, 1.0)), 16 * 300 - 5, seed=1).tokens
    texts = written.reshape(300, 16)
    assert (np.diff(texts[:, :3]) == 1).all()  # the corpus counts upwards
    assert len(set(texts[:, 0].tolist())) > 80
    for place, text in enumerate(texts[:20].tolist()):
        greedy = text[:3] + generate(model, text[:3], lambda logits, position: int(logits.argmax()), 13, frozenset())
        assert (text == greedy) == (place % 2 == 0)


def test_texts_are_a_function_of_the_seed() -> None:
    model = fresh_model(TINY)
    first, again, other = (write_texts(model, CORPUS, Texts(16, 3, (1.0,)), 400, seed).tokens for seed in (1, 1, 2))
    assert first.dtype == np.int32
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("config", [TINY, TINY_GPT2])
def test_kept_logits_are_the_writers_at_every_token_but_the_last(config: ModelConfig) -> None:
    model = fresh_model(config)
    written = write_texts(model, CORPUS, Texts(16, 3, (0.0, 1.0)), 16 * 5, seed=1, keep_logits=True)
    assert written.logits is not None
    assert written.logits.shape == (5, 15, config.vocab_size)
    for text, logits in zip(written.tokens.reshape(5, 16).tolist(), written.logits, strict=True):
        expected = sequence_logits(model, text)[:-1].detach().numpy()
        np.testing.assert_allclose(logits, expected, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_writer_whose_logits_are_not_finite_is_refused(dtype: torch.dtype) -> None:
    model = fresh_model(TINY).to(dtype)
    with torch.no_grad():
        model.unembedding.weight[7, 0] = torch.nan
    with pytest.raises(TrainingError, match="not finite"):
        write_texts(model, CORPUS, Texts(16, 3, (0.0,)), 16, seed=1)


def test_weights_are_packed_once_for_all_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    lowered: list[Lowering | None] = []

    def lowering(model: GPT) -> Lowering | None:
        lowered.append(native_lowering(model))
        return lowered[-1]

    monkeypatch.setattr(writing, "native_lowering", lowering)
    monkeypatch.setattr(writing, "SEQUENCES_AT_ONCE", 2)
    written = write_texts(fresh_model(TINY).bfloat16(), CORPUS, Texts(16, 3, (0.0,)), 16 * 6, seed=1)
    assert len(written.tokens) == 16 * 6
    assert len(lowered) == 1
