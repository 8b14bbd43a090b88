"""Write a checkpoint of a well-known size with random weights: speed does not depend on what the weights say.

    python -m benchmarks.random_checkpoint gpt2-124m /tmp/gpt2-124m

Every size is in a layout that transformers, vLLM, llama.cpp and OpenVINO open.
"""

import random
import sys
from dataclasses import replace
from pathlib import Path

import torch

from model.checkpoint import save_checkpoint
from model.config import ModelConfig
from model.gpt import GPT, initialise
from model.tokenizer import train_bpe_tokenizer

GPT2_124M = ModelConfig(
    vocab_size=50_257,
    hidden_size=768,
    num_layers=12,
    num_heads=12,
    num_kv_heads=12,
    head_dim=64,
    intermediate_size=3_072,
    context_length=1_024,
    norm="layernorm",
    positions="learned",
    feed_forward="gelu_tanh",
    attention_bias=True,
    feed_forward_bias=True,
)
GPT_10M = replace(
    GPT2_124M,
    vocab_size=4_096,
    hidden_size=384,
    num_layers=6,
    num_heads=6,
    num_kv_heads=6,
    intermediate_size=1_536,
)
# The Llama layout (RMSNorm, rotary positions, SwiGLU, no biases) with four KV heads for twelve heads.
LLAMA_107M = ModelConfig(
    vocab_size=32_000,
    hidden_size=768,
    num_layers=12,
    num_heads=12,
    num_kv_heads=4,
    head_dim=64,
    intermediate_size=2_304,
    context_length=1_024,
)
# The Mixtral layout: eight experts, of which two see each token.
MOE_147M = replace(
    LLAMA_107M,
    vocab_size=10_240,
    hidden_size=512,
    num_layers=8,
    num_heads=8,
    intermediate_size=1_376,
    num_experts=8,
    num_experts_per_token=2,
)
SIZES = {
    "gpt2-124m": GPT2_124M,
    "gpt-10m": GPT_10M,
    "llama-107m": LLAMA_107M,
    "moe-147m": MOE_147M,
}


def write(size: str, folder: Path) -> None:
    """A random model of `size` in bfloat16, with a tokenizer in which every one of its tokens is visible text."""
    model = GPT(SIZES[size])
    initialise(model, torch.Generator().manual_seed(0))
    letters = random.Random(0)
    words = ("".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=8)) for _ in range(10 * model.config.vocab_size))
    tokenizer = train_bpe_tokenizer([" ".join(words)], vocab_size=model.config.vocab_size)
    assert tokenizer.vocab_size == model.config.vocab_size
    save_checkpoint(model, folder, dtype=torch.bfloat16, eos_token_ids=tokenizer.eos_token_ids)
    tokenizer.save(folder)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in SIZES:
        sys.exit(f"usage: random_checkpoint.py {{{','.join(SIZES)}}} FOLDER")
    write(sys.argv[1], Path(sys.argv[2]))
