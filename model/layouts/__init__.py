"""Checkpoint layouts: every `model_type` that can be read and written, in the order writing prefers them."""

from model.layouts.gpt2 import GPT2
from model.layouts.layout import EMBEDDING, UNEMBEDDING, Layout, Part, Shapes, Table, unembedding_name
from model.layouts.llama import LLAMA, MISTRAL, MIXTRAL, QWEN3
from model.layouts.own import OWN

LAYOUTS = (GPT2, LLAMA, MISTRAL, QWEN3, MIXTRAL, OWN)

__all__ = ["EMBEDDING", "LAYOUTS", "UNEMBEDDING", "Layout", "Part", "Shapes", "Table", "unembedding_name"]
