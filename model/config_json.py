"""config.json of a checkpoint folder: between Hugging Face's fields and ModelConfig. Knows no tensor, imports no torch.

A setting that would change the result and that the model does not have is refused by name. A field which
transformers' own class for the model_type does not read either (a dropout rate, a version) is passed over.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from model.config import ConfigError, ModelConfig
from model.files import CheckpointError, read_json
from model.layouts import LAYOUTS, Layout
from model.layouts.fields import Fields

CONFIG_FILE = "config.json"


def read_config(folder: Path) -> ModelConfig:
    """The model a checkpoint folder holds. Raises CheckpointError naming the file and the field."""
    return read_layout(folder)[1]


def read_layout(folder: Path) -> tuple[Layout, ModelConfig]:
    """The layout of a checkpoint folder and the model it holds. Raises CheckpointError."""
    path = folder / CONFIG_FILE
    raw = read_json(path)
    try:
        return _named_layout(raw), parse_config(raw)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def parse_config(raw: Mapping[str, object]) -> ModelConfig:
    """The model that config.json's fields describe. Raises CheckpointError or ConfigError naming the field."""
    layout = _named_layout(raw)
    fields = Fields(raw)
    fields.refuse_unless("quantization_config")
    fields.refuse_unless("is_encoder_decoder", False)
    return layout.parse(fields)


def config_json(config: ModelConfig, *, dtype: str, eos_token_ids: Sequence[int] = ()) -> dict[str, object]:
    """The fields of a config.json, in the first layout that can represent `config`.

    `dtype` is the name of the tensors' type, such as "float32".
    """
    layout = best_layout(config)
    return {
        "architectures": [layout.architecture],
        "model_type": layout.model_type,
        **layout.write(config),
        "dtype": dtype,
        # Stated even where there is none: each family has a default of its own, which is not ours.
        "bos_token_id": None,
        "eos_token_id": token_id_field(eos_token_ids),
    }


def best_layout(config: ModelConfig) -> Layout:
    """The first layout that reads back exactly what it writes for `config`; our own always does."""
    return next(layout for layout in LAYOUTS if _represents(layout, config))


def token_id_field(ids: Sequence[int]) -> int | list[int] | None:
    """Token ids the way Hugging Face files state them: nothing, one number or a list."""
    return None if not ids else ids[0] if len(ids) == 1 else list(ids)


def _represents(layout: Layout, config: ModelConfig) -> bool:
    # One rule in place of a list of conditions per family: what does not survive the round trip has no counterpart.
    try:
        return layout.parse(Fields(layout.write(config))) == config
    except (CheckpointError, ConfigError):
        return False


def _named_layout(raw: Mapping[str, object]) -> Layout:
    names = [layout.model_type for layout in LAYOUTS]
    chosen = Fields(raw).choice("model_type", names)
    return LAYOUTS[names.index(chosen)]
