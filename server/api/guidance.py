"""The request's fields of classifier-free guidance, to what the engine is told for each prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

from server.api.compare_request import CompareRequest
from server.api.json_guard import shown
from server.api.parameters import InForce
from server.api.prompts import TokenizedPrompt, check_token_ids
from server.api.schemas import GenerationRequest
from server.api.schemas_chat import ChatRequest
from server.api.served_model import ServedModel
from server.api.service import Service
from server.api.settings import LONG_TEXT
from server.engine.params import ParameterError
from server.engine.types import Guidance
from server.errors import BadRequest

_NAME = "negative_prompt"
_NO_GUIDANCE = 1.0  # the scale


@dataclass(frozen=True)
class Guided:
    """How one prompt is guided, and what the output follows there, with the name errors call it by."""

    prompt: TokenizedPrompt
    guidance: Guidance


def read_guidance(
    service: Service, model: ServedModel, asked: GenerationRequest, prompts: Sequence[TokenizedPrompt]
) -> list[Guided] | None:
    """What each prompt is guided away from, or None for a request without guidance.

    Without a negative prompt it is the prompt's last token, as in transformers: of a fork, the last that was no
    output. Raises BadRequest.
    """
    scale, negative = asked.guidance_scale, asked.negative_prompt
    if scale is None and negative is not None:
        raise BadRequest("negative_prompt is set but guidance_scale is not; set both.", _NAME, "invalid_value")
    if scale is None:
        return None
    negatives = [prompt.unforked[-1:] for prompt in prompts]
    if negative is not None:
        tokens = _tokens(service, model, asked, negative)
        if not tokens:
            raise BadRequest(f"{_NAME} is empty; it must have at least one token.", _NAME, "invalid_value")
        check_token_ids(tokens, service.engine_info(model).vocab_size, _NAME)
        negatives = [tokens] * len(prompts)
    guided = [_guided(own, prompt, scale) for own, prompt in zip(negatives, prompts, strict=True)]
    return None if scale == _NO_GUIDANCE else guided


def guidance_in_force(asked: GenerationRequest, guided: Sequence[Guided] | None) -> dict[str, InForce]:
    """What is told of the guidance; nothing where there is none."""
    if guided is None:
        return {}
    if asked.negative_prompt is not None:
        negative = InForce(asked.negative_prompt, "request")
    else:
        # One for all prompts can be sent back; null gives each its own again.
        first, *others = (one.guidance.negative_prompt for one in guided)
        negative = InForce(first if all(first == other for other in others) else None, "server")
    return {"guidance_scale": InForce(asked.guidance_scale, "request"), _NAME: negative}


def _guided(tokens: tuple[int, ...], prompt: TokenizedPrompt, scale: float) -> Guided:
    try:
        return Guided(TokenizedPrompt(tokens + prompt.forked, None, _NAME), Guidance(tokens, scale))
    except ParameterError as error:
        raise BadRequest(f"{error}.", error.parameter, "invalid_value") from None


def _tokens(
    service: Service, model: ServedModel, asked: GenerationRequest, negative: str | tuple[int, ...]
) -> tuple[int, ...]:
    """Text is tokenized as the prompt's is; in a chat it is the user's only turn."""
    if not isinstance(negative, str):
        return negative
    if len(negative) > LONG_TEXT:  # unlike the prompt it is tokenized here and now
        message = f"{_NAME} has {len(negative)} characters, beginning {shown(negative[:20])}; the limit is {LONG_TEXT}."
        raise BadRequest(message, _NAME, "invalid_value")
    if not isinstance(asked, ChatRequest | CompareRequest) or asked.messages is None:
        tokens = model.tokenizer.encode(negative, asked.add_special_tokens is not False)
        bos = model.tokenizer.bos_token_id
        return tuple(tokens) or (() if bos is None else (bos,))
    text = service.templates[model.name].render(
        [{"role": "user", "content": negative}],
        asked.add_generation_prompt is not False,
        asked.chat_template_kwargs or {},
        4 * service.settings.max_body_bytes,
    )
    return tuple(model.tokenizer.encode(text, asked.add_special_tokens is True))
