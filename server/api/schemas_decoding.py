"""What a client may send to decode otherwise than by sampling from one prompt. `beams` and `guidance` read it."""

from typing import Annotated

from pydantic import Field, PlainValidator

from server.api.fields import read_token_ids
from server.api.json_guard import shown
from server.api.validation import StrictModel
from server.engine.types import MAX_BEAMS, EarlyStopping
from server.errors import BadRequest

Width = Annotated[int, Field(ge=1, le=MAX_BEAMS)]


def _read_negative_prompt(value: object) -> str | tuple[int, ...] | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        return read_token_ids("negative_prompt", value)
    message = f"negative_prompt is {shown(value)}; it must be a string or an array of token ids."
    raise BadRequest(message, "negative_prompt", "invalid_value")


def _read_early_stopping(value: object) -> EarlyStopping | None:
    if value is None or isinstance(value, bool):
        return value
    if value == "never":
        return "never"
    message = f'early_stopping is {shown(value)}; it must be true, false or "never".'
    raise BadRequest(message, "early_stopping", "invalid_value")


_EARLY_STOPPING = PlainValidator(_read_early_stopping, json_schema_input_type=EarlyStopping | None)
_NEGATIVE_PROMPT = PlainValidator(_read_negative_prompt, json_schema_input_type=str | list[int] | None)


class BeamFields(StrictModel):
    """`use_beam_search` is vLLM's way to ask, the other names are those of transformers."""

    use_beam_search: bool | None = None
    beam_width: Width | None = None
    num_beams: Width | None = None
    length_penalty: float | None = None
    early_stopping: Annotated[EarlyStopping | None, _EARLY_STOPPING] = None
    num_beam_groups: Width | None = None
    diversity_penalty: float | None = None


class GuidanceFields(StrictModel):
    """Classifier-free guidance. `negative_prompt` is text (in a chat, of a user's only turn) or token ids."""

    guidance_scale: float | None = None
    negative_prompt: Annotated[str | tuple[int, ...] | None, _NEGATIVE_PROMPT] = None
