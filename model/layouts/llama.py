"""Llama's layout (Touvron et al. 2023) and its kin: Mistral adds a window, Qwen3 a norm of queries and keys, Mixtral
experts. Projections are separate there and fused here."""

from dataclasses import replace

from model.config import ModelConfig
from model.files import CheckpointError
from model.layouts.fields import Fields
from model.layouts.layout import Layout, Rule, table

_LAYER = "model.layers.{layer}"
_ATTENTION = (
    Rule("model.embed_tokens.weight", "embedding.weight"),
    Rule(f"{_LAYER}.input_layernorm.weight", "layers.{layer}.attention_norm.weight"),
    Rule(f"{_LAYER}.self_attn.q_proj.weight", "layers.{layer}.attention.qkv.weight", "query"),
    Rule(f"{_LAYER}.self_attn.k_proj.weight", "layers.{layer}.attention.qkv.weight", "key"),
    Rule(f"{_LAYER}.self_attn.v_proj.weight", "layers.{layer}.attention.qkv.weight", "value"),
    Rule(f"{_LAYER}.self_attn.o_proj.weight", "layers.{layer}.attention.out.weight"),
    Rule(f"{_LAYER}.self_attn.q_proj.bias", "layers.{layer}.attention.qkv.bias", "query"),
    Rule(f"{_LAYER}.self_attn.k_proj.bias", "layers.{layer}.attention.qkv.bias", "key"),
    Rule(f"{_LAYER}.self_attn.v_proj.bias", "layers.{layer}.attention.qkv.bias", "value"),
    Rule(f"{_LAYER}.self_attn.o_proj.bias", "layers.{layer}.attention.out.bias"),
    Rule(f"{_LAYER}.self_attn.q_norm.weight", "layers.{layer}.attention.query_norm.weight"),
    Rule(f"{_LAYER}.self_attn.k_norm.weight", "layers.{layer}.attention.key_norm.weight"),
    Rule(f"{_LAYER}.post_attention_layernorm.weight", "layers.{layer}.feed_forward_norm.weight"),
    Rule("model.norm.weight", "final_norm.weight"),
    Rule("lm_head.weight", "unembedding.weight"),
)
_DENSE = (
    Rule(f"{_LAYER}.mlp.gate_proj.weight", "layers.{layer}.feed_forward.up.weight", "gate"),
    Rule(f"{_LAYER}.mlp.up_proj.weight", "layers.{layer}.feed_forward.up.weight", "up"),
    Rule(f"{_LAYER}.mlp.down_proj.weight", "layers.{layer}.feed_forward.down.weight"),
    Rule(f"{_LAYER}.mlp.gate_proj.bias", "layers.{layer}.feed_forward.up.bias", "gate"),
    Rule(f"{_LAYER}.mlp.up_proj.bias", "layers.{layer}.feed_forward.up.bias", "up"),
    Rule(f"{_LAYER}.mlp.down_proj.bias", "layers.{layer}.feed_forward.down.bias"),
)
_SPARSE = f"{_LAYER}.block_sparse_moe"
_EXPERTS = (
    Rule(f"{_SPARSE}.gate.weight", "layers.{layer}.feed_forward.router.weight"),
    Rule(f"{_SPARSE}.experts.{{expert}}.w1.weight", "layers.{layer}.feed_forward.up", "gate"),
    Rule(f"{_SPARSE}.experts.{{expert}}.w3.weight", "layers.{layer}.feed_forward.up", "up"),
    Rule(f"{_SPARSE}.experts.{{expert}}.w2.weight", "layers.{layer}.feed_forward.down"),
)
# How transformers 5 keeps experts in memory, and saves them when told not to convert back.
_FUSED_EXPERTS = (
    Rule(f"{_LAYER}.mlp.gate.weight", "layers.{layer}.feed_forward.router.weight"),
    Rule(f"{_LAYER}.mlp.experts.gate_up_proj", "layers.{layer}.feed_forward.up"),
    Rule(f"{_LAYER}.mlp.experts.down_proj", "layers.{layer}.feed_forward.down"),
)
_ROTARY_BUFFER = r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"


def _parse_llama(fields: Fields) -> ModelConfig:
    fields.refuse_unless("sliding_window")
    _refuse_layers_unlike(fields, "full_attention")
    num_heads = fields.whole("num_attention_heads")
    if num_heads < 1 or fields.whole("hidden_size") % num_heads:
        # transformers refuses such a Llama, even one that states its head_dim.
        raise CheckpointError(
            f"hidden_size {fields.whole('hidden_size')} is not a multiple of num_attention_heads {num_heads}"
        )
    return replace(
        _parse_common(fields, num_kv_heads=num_heads),
        attention_bias=fields.flag("attention_bias", False),
        feed_forward_bias=fields.flag("mlp_bias", False),
    )


def _parse_mistral(fields: Fields) -> ModelConfig:
    if "sliding_window" not in fields:
        # transformers takes 4096 then, other programs no window: only a stated value means the same to all.
        raise CheckpointError("sliding_window is missing; it must be a whole number or null")
    return replace(_parse_common(fields), sliding_window=_window(fields))


def _parse_qwen3(fields: Fields) -> ModelConfig:
    fields.refuse_unless("use_sliding_window", False)
    _refuse_layers_unlike(fields, "full_attention")
    fields.whole("head_dim")  # does not default to hidden_size / num_attention_heads there
    return replace(_parse_common(fields), qk_norm=True, attention_bias=fields.flag("attention_bias", False))


def _parse_mixtral(fields: Fields) -> ModelConfig:
    return replace(
        _parse_common(fields, rope_theta=1_000_000.0),
        sliding_window=_window(fields),
        num_experts=fields.whole("num_local_experts"),
        num_experts_per_token=fields.whole("num_experts_per_tok"),
    )


def _window(fields: Fields) -> int | None:
    window = fields.whole_or_none("sliding_window")
    _refuse_layers_unlike(fields, "full_attention" if window is None else "sliding_attention")
    return window


def _parse_common(fields: Fields, num_kv_heads: int | None = None, rope_theta: float = 10_000.0) -> ModelConfig:
    """`num_kv_heads` and `rope_theta` are what an absent field means."""
    fields.refuse_unless("hidden_act", "silu", "swish")
    fields.refuse_unless("rope_interleaved", False)
    hidden_size, num_heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    return ModelConfig(
        vocab_size=fields.whole("vocab_size"),
        hidden_size=hidden_size,
        num_layers=fields.whole("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=fields.whole("num_key_value_heads", num_kv_heads),
        head_dim=fields.whole("head_dim", hidden_size // max(1, num_heads)),
        intermediate_size=fields.whole("intermediate_size"),
        context_length=fields.whole("max_position_embeddings"),
        norm_epsilon=fields.number("rms_norm_eps"),
        rope_theta=_rope_theta(fields, rope_theta),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
    )


def _rope_theta(fields: Fields, default: float) -> float:
    """The base frequency from `rope_parameters` or from the older `rope_theta`; scaled rotations are refused."""
    fields.refuse_unless("partial_rotary_factor", 1.0, 1)
    for section in (fields.section("rope_scaling"), fields.section("rope_parameters")):
        for name in section.names():
            if name in ("rope_type", "type"):
                section.refuse_unless(name, "default")
            elif name == "partial_rotary_factor":
                section.refuse_unless(name, 1.0, 1)
            elif name != "rope_theta":
                section.refuse_unless(name)
    stated = fields.number("rope_theta", default)
    theta = fields.section("rope_parameters").number("rope_theta", stated)
    if "rope_theta" in fields.names() and theta != stated:
        raise CheckpointError(f"rope_theta is {stated} but rope_parameters.rope_theta is {theta}")
    return theta


def _refuse_layers_unlike(fields: Fields, wanted: str) -> None:
    for kind in fields.texts("layer_types"):
        if kind != wanted:
            raise CheckpointError(f"layer_types holds {kind!r}, which is not supported; every layer must be {wanted}")


def _write_common(config: ModelConfig) -> dict[str, object]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_epsilon,
        # Both spellings: the new one for transformers 5, the old one for everything else.
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_embeddings,
    }


def _write_llama(config: ModelConfig) -> dict[str, object]:
    biases = {"attention_bias": config.attention_bias, "mlp_bias": config.feed_forward_bias}
    return {**_write_common(config), **biases}


def _write_mistral(config: ModelConfig) -> dict[str, object]:
    return {**_write_common(config), "sliding_window": config.sliding_window}


def _write_qwen3(config: ModelConfig) -> dict[str, object]:
    return {**_write_common(config), "attention_bias": config.attention_bias, "use_sliding_window": False}


def _write_mixtral(config: ModelConfig) -> dict[str, object]:
    experts = {"num_local_experts": config.num_experts, "num_experts_per_tok": config.num_experts_per_token}
    return {**_write_common(config), "sliding_window": config.sliding_window, **experts}


_DENSE_TABLES = (table(_ATTENTION + _DENSE),)
_SPARSE_TABLES = (table(_ATTENTION + _EXPERTS), table(_ATTENTION + _FUSED_EXPERTS))

LLAMA = Layout("llama", "LlamaForCausalLM", _parse_llama, _write_llama, _DENSE_TABLES, _ROTARY_BUFFER)
MISTRAL = Layout("mistral", "MistralForCausalLM", _parse_mistral, _write_mistral, _DENSE_TABLES, _ROTARY_BUFFER)
QWEN3 = Layout("qwen3", "Qwen3ForCausalLM", _parse_qwen3, _write_qwen3, _DENSE_TABLES, _ROTARY_BUFFER)
MIXTRAL = Layout("mixtral", "MixtralForCausalLM", _parse_mixtral, _write_mixtral, _SPARSE_TABLES, _ROTARY_BUFFER)
