"""GPT-2's layout (Radford et al. 2019) as the hub stores it: Conv1D weights, [in, out], query, key and value fused."""

from model.config import FeedForward, ModelConfig
from model.files import CheckpointError
from model.layouts.fields import Fields
from model.layouts.layout import Layout, Rule, table

_ACTIVATIONS: dict[str, FeedForward] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}

_LAYER = "transformer.h.{layer}"
_RULES = (
    Rule("transformer.wte.weight", "embedding.weight"),
    Rule("transformer.wpe.weight", "position_embedding.weight"),
    Rule(f"{_LAYER}.ln_1.weight", "layers.{layer}.attention_norm.weight"),
    Rule(f"{_LAYER}.ln_1.bias", "layers.{layer}.attention_norm.bias"),
    Rule(f"{_LAYER}.attn.c_attn.weight", "layers.{layer}.attention.qkv.weight", transposed=True),
    Rule(f"{_LAYER}.attn.c_attn.bias", "layers.{layer}.attention.qkv.bias"),
    Rule(f"{_LAYER}.attn.c_proj.weight", "layers.{layer}.attention.out.weight", transposed=True),
    Rule(f"{_LAYER}.attn.c_proj.bias", "layers.{layer}.attention.out.bias"),
    Rule(f"{_LAYER}.ln_2.weight", "layers.{layer}.feed_forward_norm.weight"),
    Rule(f"{_LAYER}.ln_2.bias", "layers.{layer}.feed_forward_norm.bias"),
    Rule(f"{_LAYER}.mlp.c_fc.weight", "layers.{layer}.feed_forward.up.weight", transposed=True),
    Rule(f"{_LAYER}.mlp.c_fc.bias", "layers.{layer}.feed_forward.up.bias"),
    Rule(f"{_LAYER}.mlp.c_proj.weight", "layers.{layer}.feed_forward.down.weight", transposed=True),
    Rule(f"{_LAYER}.mlp.c_proj.bias", "layers.{layer}.feed_forward.down.bias"),
    Rule("transformer.ln_f.weight", "final_norm.weight"),
    Rule("transformer.ln_f.bias", "final_norm.bias"),
    Rule("lm_head.weight", "unembedding.weight"),
)
# The first GPT-2 files were saved from the bare model, without the prefix.
_BARE_RULES = tuple(
    Rule(rule.theirs.removeprefix("transformer."), rule.ours, rule.rows, rule.transposed) for rule in _RULES
)


def _parse(fields: Fields) -> ModelConfig:
    fields.refuse_unless("scale_attn_weights", True)
    for name in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"):
        fields.refuse_unless(name, False)
    hidden_size = fields.whole("n_embd")
    num_heads = fields.whole("n_head")
    if num_heads < 1 or hidden_size % num_heads:
        raise CheckpointError(f"n_embd {hidden_size} is not a multiple of n_head {num_heads}")
    activation = fields.choice("activation_function", list(_ACTIVATIONS), "gelu_new")
    return ModelConfig(
        vocab_size=fields.whole("vocab_size"),
        hidden_size=hidden_size,
        num_layers=fields.whole("n_layer"),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=fields.whole("n_inner", 4 * hidden_size),
        context_length=fields.whole("n_positions"),
        norm="layernorm",
        norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
        positions="learned",
        feed_forward=_ACTIVATIONS[activation],
        attention_bias=True,
        feed_forward_bias=True,
        tie_embeddings=fields.flag("tie_word_embeddings", True),
    )


def _write(config: ModelConfig) -> dict[str, object]:
    activation = next((theirs for theirs, ours in _ACTIVATIONS.items() if ours == config.feed_forward), None)
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_ctx": config.context_length,  # the older name, which some converters still ask for
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.intermediate_size,
        "activation_function": activation,
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
    }


GPT2 = Layout(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    parse=_parse,
    write=_write,
    tables=(table(_RULES), table(_BARE_RULES)),
    ignored=r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",  # the causal mask, once saved as a buffer
)
