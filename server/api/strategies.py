"""Presets: the sampler order and the defaults of other engines, by name. Knows no request.

A value here stands in for what the request leaves out, before what checkpoint and server recommend. The formulas and
the noise are this server's in every order, so a preset gives an engine's distribution, not its tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from server.api.json_guard import shown
from server.errors import BadRequest


@dataclass(frozen=True)
class Preset:
    """`values` by the names of SamplingParams."""

    samplers: tuple[str, ...]
    values: Mapping[str, object] = field(default_factory=dict)

    def given(self) -> dict[str, object]:
        return {**self.values, "samplers": self.samplers}


_PENALTIES = ("repetition_penalty", "frequency_penalty", "presence_penalty")

PRESETS: Mapping[str, Preset] = {
    # https://docs.vllm.ai/en/v0.22.1/api/vllm/v1/sample/sampler/ lists the steps: penalties, temperature, the
    # processors that leave the arg-max alone (min_p), top_k, top_p. Defaults are the checkpoint's, else neutral.
    "vllm": Preset((*_PENALTIES, "temperature", "min_p", "top_k", "top_p")),
    # common_params_sampling in https://github.com/ggml-org/llama.cpp/blob/master/common/common.h. There the frequency
    # and presence penalties count the prompt's tokens within the window too.
    "llama.cpp": Preset(
        (*_PENALTIES, "dry", "top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc", "temperature"),
        {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.0, "repeat_last_n": 64},
    ),
    # GenerationMixin._get_logits_processor and the generation defaults of transformers 5, for do_sample=True
    # (https://huggingface.co/docs/transformers/main_classes/text_generation).
    "transformers": Preset(
        (
            "repetition_penalty",
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "typical_p",
            "epsilon_cutoff",
            "eta_cutoff",
        ),
        {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0},
    ),
    # https://platform.openai.com/docs/api-reference/completions/create documents these four and their defaults. The
    # order is not published; this one keeps the penalties on logits, as the formula given for them says.
    "openai": Preset(
        ("frequency_penalty", "presence_penalty", "temperature", "top_p"), {"temperature": 1.0, "top_p": 1.0}
    ),
}


def preset_values(name: str | None) -> Mapping[str, object]:
    """What the preset says; nothing for None. Raises BadRequest for a name there is none of."""
    if name is None:
        return {}
    if name not in PRESETS:
        names = ", ".join(PRESETS)
        raise BadRequest(f"strategy is {shown(name)}; it must be one of {names}.", "strategy", "invalid_value")
    return PRESETS[name].given()
