"""Which answer a sequence belonged to and whose it was, as long as anybody may ask. Knows neither wire nor engine."""

from collections import OrderedDict
from dataclasses import dataclass

# Sequences remembered. An older one is then nobody's: it is counted, and no longer named.
MAX_ORIGINS = 32_768


@dataclass(frozen=True, slots=True)
class Origin:
    """A sequence as its client knows it. `salt` is its cache salt, which says whose it is."""

    answer_id: str
    index: int
    salt: str


class Origins:
    """The newest sequences by their id in the engine."""

    def __init__(self, max_origins: int = MAX_ORIGINS) -> None:
        self._max_origins = max_origins
        self._origins: OrderedDict[int, Origin] = OrderedDict()

    def note(self, id_: int, origin: Origin) -> None:
        self._origins[id_] = origin
        if len(self._origins) > self._max_origins:
            self._origins.popitem(last=False)

    def find(self, id_: int) -> Origin | None:
        return self._origins.get(id_)
