"""Our own layout, for configurations no other family has: ModelConfig's fields and the model's own tensor names."""

from dataclasses import asdict
from typing import get_args

from model.config import FeedForward, ModelConfig, Norm, NormPlacement, Positions
from model.files import CheckpointError
from model.layouts.fields import Fields
from model.layouts.layout import Layout, own_names

# What any config.json may hold besides the architecture.
_GENERAL = frozenset(
    ("model_type", "architectures", "dtype", "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version")
)


def _parse(fields: Fields) -> ModelConfig:
    """Every field is required: a default that changed later would change the meaning of files already written."""
    config = ModelConfig(
        vocab_size=fields.whole("vocab_size"),
        hidden_size=fields.whole("hidden_size"),
        num_layers=fields.whole("num_layers"),
        num_heads=fields.whole("num_heads"),
        num_kv_heads=fields.whole("num_kv_heads"),
        head_dim=fields.whole("head_dim"),
        intermediate_size=fields.whole("intermediate_size"),
        context_length=fields.whole("context_length"),
        norm=fields.choice("norm", get_args(Norm)),
        norm_placement=fields.choice("norm_placement", get_args(NormPlacement)),
        norm_epsilon=fields.number("norm_epsilon"),
        positions=fields.choice("positions", get_args(Positions)),
        rope_theta=fields.number("rope_theta"),
        feed_forward=fields.choice("feed_forward", get_args(FeedForward)),
        attention_bias=fields.flag("attention_bias"),
        feed_forward_bias=fields.flag("feed_forward_bias"),
        qk_norm=fields.flag("qk_norm"),
        tie_embeddings=fields.flag("tie_embeddings"),
        sliding_window=fields.whole_or_none("sliding_window"),
        num_experts=fields.whole("num_experts"),
        num_experts_per_token=fields.whole("num_experts_per_token"),
    )
    unknown = sorted(set(fields.names()) - set(asdict(config)) - _GENERAL)
    if unknown:
        raise CheckpointError(f"{unknown[0]} is not a field of this model_type")
    return config


OWN = Layout("minigpt", "MiniGPT", _parse, asdict, (own_names,))
