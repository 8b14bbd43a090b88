"""What a checkpoint layout is: how one family names its fields and tensors. The same table serves both directions.

Knows shapes but no tensor; imports no torch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from model.config import ModelConfig
from model.layouts.fields import Fields

# Parameter name -> shape, as the model has them; a tied unembedding does not appear.
Shapes = Mapping[str, tuple[int, ...]]
Rows = Literal["all", "query", "key", "value", "gate", "up"]
# Index of a region of one of our parameters: expert, then rows.
Region = tuple[int | slice, ...]

UNEMBEDDING = "unembedding.weight"
EMBEDDING = "embedding.weight"


@dataclass(frozen=True)
class Rule:
    """Their tensor is our parameter, or some rows of it, perhaps transposed.

    `{layer}` and `{expert}` in a name stand for every layer and every expert. A rule whose parameter the model does
    not have (a bias, a norm, a tied unembedding) says nothing.
    """

    theirs: str
    ours: str
    rows: Rows = "all"
    transposed: bool = False


@dataclass(frozen=True)
class Part:
    """A rule for one layer and expert: tensor `theirs` is `ours[region]`."""

    theirs: str
    ours: str
    region: Region = ()
    transposed: bool = False

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        """The shape tensor `theirs` must have."""
        shape = shapes[self.ours]
        for index in self.region:
            shape = shape[1:] if isinstance(index, int) else (index.stop - index.start, *shape[1:])
        return shape[::-1] if self.transposed else shape


# The parts that make up a model. Lazy, because a hostile config can ask for millions.
Table = Callable[[ModelConfig, Shapes], Iterator[Part]]


@dataclass(frozen=True)
class Layout:
    """One `model_type`. `parse` reads its config.json fields, `write` is the inverse for what it can represent.

    `tables` are the namings found in the wild; the first is the one we write. Tensors whose names match `ignored`
    hold no weights.
    """

    model_type: str
    architecture: str
    parse: Callable[[Fields], ModelConfig]
    write: Callable[[ModelConfig], dict[str, object]]
    tables: tuple[Table, ...]
    ignored: str = r"(?!)"


def table(rules: Iterable[Rule]) -> Table:
    """The table in which `rules` hold for every layer and expert."""
    fixed = tuple(rules)

    def parts(config: ModelConfig, shapes: Shapes) -> Iterator[Part]:
        for rule in fixed:
            yield from _expand(rule, config, shapes)

    return parts


def own_names(config: ModelConfig, shapes: Shapes) -> Iterator[Part]:
    """The table of a layout that names tensors as the model does."""
    for name in shapes:
        yield Part(name, name)


def unembedding_name(parts: Table, config: ModelConfig, shapes: Shapes) -> str | None:
    """What a table calls the unembedding, whether or not the model's is tied."""
    untied = {UNEMBEDDING: shapes[EMBEDDING]}
    return next((part.theirs for part in parts(config, untied) if part.ours == UNEMBEDDING), None)


def _expand(rule: Rule, config: ModelConfig, shapes: Shapes) -> Iterator[Part]:
    layers = range(config.num_layers) if "{layer}" in rule.ours else range(1)
    experts = range(config.num_experts) if "{expert}" in rule.theirs else None
    rows = _rows(rule.rows, config)
    for layer in layers:
        ours = rule.ours.replace("{layer}", str(layer))
        theirs = rule.theirs.replace("{layer}", str(layer))
        if ours not in shapes:
            continue
        if experts is None:
            yield Part(theirs, ours, rows, rule.transposed)
        else:
            for expert in experts:
                yield Part(theirs.replace("{expert}", str(expert)), ours, (expert, *rows), rule.transposed)


def _rows(rows: Rows, config: ModelConfig) -> Region:
    """Where in a fused parameter the rows lie: query, key and value heads in that order; gate before up."""
    query = config.num_heads * config.head_dim
    key = config.num_kv_heads * config.head_dim
    width = config.intermediate_size
    regions: dict[Rows, Region] = {
        "all": (),
        "query": (slice(0, query),),
        "key": (slice(query, query + key),),
        "value": (slice(query + key, query + 2 * key),),
        "gate": (slice(0, width),),
        "up": (slice(width, 2 * width),),
    }
    return regions[rows]
