"""A real server, both processes of it, over three tiny random checkpoints."""

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from model.checkpoint import save_checkpoint
from model.config import ModelConfig
from model.gpt import GPT, initialise
from model.tokenizer import train_bpe_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"vocab_size": 300, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "head_dim": 16, "context_length": 256}
GQA = ModelConfig(**SIZES, num_kv_heads=2, intermediate_size=96, tie_embeddings=False)
FAMILIES = {
    "gpt": ModelConfig(
        **SIZES,
        num_kv_heads=4,
        intermediate_size=128,
        norm="layernorm",
        positions="learned",
        feed_forward="gelu_tanh",
        attention_bias=True,
        feed_forward_bias=True,
    ),
    "gqa": GQA,
    "moe": ModelConfig(
        **SIZES, num_kv_heads=2, intermediate_size=64, num_experts=4, num_experts_per_token=2, tie_embeddings=False
    ),
}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three checkpoint folders: gpt, gqa and moe."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tokenizer = train_bpe_tokenizer(["to be or not to be, that is the question"], vocab_size=300)
    for name, config in FAMILIES.items():
        model = GPT(config)
        initialise(model, torch.Generator().manual_seed(1))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4 if parameter.dim() > 1 else 1)  # so that answers are not all the same token
        save_checkpoint(model, folder / name, dtype=torch.bfloat16, eos_token_ids=tokenizer.eos_token_ids)
        tokenizer.save(folder / name)
    return folder


@pytest.fixture(scope="session")
def server_url(checkpoints: Path) -> Iterator[str]:
    """The address of `minigpt-serve` over the three checkpoints."""
    models = [argument for name in FAMILIES for argument in ("--model", str(checkpoints / name))]
    with running_server([*models, "--max-running", "16"]) as url:
        yield url


@pytest.fixture(scope="session")
def shipped_url() -> Iterator[str]:
    """The address of `minigpt-serve` over the shipped checkpoints."""
    with running_server([]) as url:
        yield url


@contextmanager
def running_server(arguments: Sequence[str]) -> Iterator[str]:
    """The address of a server of its own; it must exit with 0 when told to stop."""
    command = [sys.executable, "-m", "server", *arguments, "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if ready := re.search(r" ready url=(\S+)", line):
                yield ready[1]
                break
        process.terminate()
        process.stderr.read()
    assert process.returncode == 0
