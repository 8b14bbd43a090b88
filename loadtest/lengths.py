"""Length distributions written as text, such as `fixed:48` or `normal:48:12:200`. Knows nothing of prompts."""

import math
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np

from loadtest.refusal import refuse

Kind = Literal["fixed", "uniform", "normal", "lognormal"]
MAX_LENGTH = 1_000_000
FORMS = "must be fixed:N, uniform:LOW:HIGH, normal:MEAN:SD[:MAX] or lognormal:MEDIAN:SIGMA[:MAX]"


@dataclass(frozen=True)
class Length:
    """A distribution over whole numbers from 1 to `maximum`; what is drawn outside is moved to the nearer end."""

    kind: Kind
    first: float
    second: float
    maximum: int

    def draw(self, rng: np.random.Generator) -> int:
        """One length."""
        return min(max(1, round(self._draw(rng))), self.maximum)

    def _draw(self, rng: np.random.Generator) -> float:
        match self.kind:
            case "fixed":
                return self.first
            case "uniform":
                return float(rng.integers(int(self.first), int(self.second), endpoint=True))
            case "normal":
                return float(rng.normal(self.first, self.second))
            case "lognormal":
                # The median is named because it is what people read off a histogram; exp(mu) is the median.
                return float(rng.lognormal(math.log(self.first), self.second))


def parse_length(field: str, text: str) -> Length:
    """The distribution that `text` names; refused under the name `field` otherwise."""
    kind, *rest = text.split(":")
    if kind not in get_args(Kind):
        refuse(field, text, FORMS)
    numbers = [_number(field, text, part) for part in rest]
    whole = {"fixed": 1, "uniform": 2}.get(kind, 0)
    allowed = (whole,) if whole else (2, 3)
    if len(numbers) not in allowed or any(number != int(number) for number in numbers[:whole] + numbers[2:]):
        refuse(field, text, FORMS + ", with whole N, LOW, HIGH and MAX")
    first = numbers[0]
    second = numbers[1] if len(numbers) > 1 else 0.0
    maximum = numbers[2] if len(numbers) > 2 else MAX_LENGTH
    _check_limits(field, text, first, second)
    if not 1 <= maximum <= MAX_LENGTH:
        refuse(field, text, f"MAX must be from 1 to {MAX_LENGTH}")
    return Length(cast(Kind, kind), first, second, int(maximum))


def _number(field: str, text: str, part: str) -> float:
    try:
        number = float(part)
    except ValueError:
        refuse(field, text, FORMS)
    if not math.isfinite(number):
        refuse(field, text, "every number must be finite")
    return number


def _check_limits(field: str, text: str, first: float, second: float) -> None:
    if not 1 <= first <= MAX_LENGTH:
        refuse(field, text, f"the first number must be from 1 to {MAX_LENGTH}")
    if text.startswith("uniform") and not first <= second <= MAX_LENGTH:
        refuse(field, text, f"HIGH must be from LOW to {MAX_LENGTH}")
    if text.startswith("normal") and not 0 <= second <= MAX_LENGTH:
        refuse(field, text, f"SD must be from 0 to {MAX_LENGTH}")
    if text.startswith("lognormal") and not 0 <= second <= 5:
        refuse(field, text, "SIGMA must be from 0 to 5")
