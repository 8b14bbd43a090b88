"""The sampler's stages by name, in their default order: their parameters, and when they apply. Knows no torch.

Constraints (a grammar's mask, allowed and banned tokens, min_tokens, bad_words, no_repeat_ngram_size, logit_bias) are
no stages: they always come first.

A new strategy is a field in `params` and its range, a line here, a pure function with its line in `stages`, and a test.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Sampler:
    """A stage, short of what it does. One that does not shape the distribution cuts candidates off."""

    parameters: tuple[str, ...]
    off: Mapping[str, float]  # it does nothing while these parameters have these values
    shapes: bool = False

    def applies(self, params: object) -> bool:
        """Whether it does anything to a row with such parameters, which are fields of `params`."""
        return any(getattr(params, name) != value for name, value in self.off.items())


_WINDOW = "repeat_last_n"
_DRY = ("dry_multiplier", "dry_base", "dry_allowed_length", "dry_range", "dry_breakers")

SAMPLERS: Mapping[str, Sampler] = {
    "repetition_penalty": Sampler(("repetition_penalty", _WINDOW), {"repetition_penalty": 1}, True),
    "frequency_penalty": Sampler(("frequency_penalty", _WINDOW), {"frequency_penalty": 0}, True),
    "presence_penalty": Sampler(("presence_penalty", _WINDOW), {"presence_penalty": 0}, True),
    "dry": Sampler(_DRY, {"dry_multiplier": 0}, True),
    "temperature": Sampler(
        ("temperature", "dynatemp_range", "dynatemp_exponent"), {"temperature": 1, "dynatemp_range": 0}, True
    ),
    "top_n_sigma": Sampler(("top_n_sigma",), {"top_n_sigma": 0}),
    "top_k": Sampler(("top_k",), {"top_k": 0}),
    "typical_p": Sampler(("typical_p",), {"typical_p": 1}),
    "epsilon_cutoff": Sampler(("epsilon_cutoff",), {"epsilon_cutoff": 0}),
    "eta_cutoff": Sampler(("eta_cutoff",), {"eta_cutoff": 0}),
    "top_a": Sampler(("top_a",), {"top_a": 0}),
    "top_p": Sampler(("top_p",), {"top_p": 1}),
    "min_p": Sampler(("min_p",), {"min_p": 0}),
    "xtc": Sampler(("xtc_probability", "xtc_threshold"), {"xtc_probability": 0}),
}

DEFAULT_ORDER = tuple(SAMPLERS)
SHAPING = frozenset(name for name, stage in SAMPLERS.items() if stage.shapes)
# The stages that have a part in beam search; the temperature and all that cuts candidates off are left to sampling.
PENALTIES = SHAPING - {"temperature"}

# The lowest temperature that divides logits without overflow. A colder one draws the same token: at this one already
# no noise bridges the distance between two different logits.
COLDEST = 1e-30

# Stands in no order: it comes last and takes the place of all stages that cut candidates off.
MIROSTAT = "mirostat"


def stages_of(parameter: str) -> tuple[str, ...]:
    """The stages that read a parameter; none for constraints and for what is no part of the choice."""
    return tuple(name for name, stage in SAMPLERS.items() if parameter in stage.parameters)
