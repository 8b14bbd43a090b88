"""What continuing a beam by a token adds to its total: log-probabilities after constraints and penalties. Knows no
search."""

from collections.abc import Sequence

from torch import Tensor

from server.engine.sampling.constraints import constrain, is_constrained
from server.engine.sampling.order import SAMPLERS
from server.engine.sampling.row import Row
from server.engine.sampling.stages import STAGES

# The stages that have a part in a search; the temperature and all that cuts candidates off are left to sampling.
PENALTIES = frozenset(name for name, stage in SAMPLERS.items() if stage.shapes) - {"temperature"}


def beam_scores(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Scores [rows, vocab] for logits [rows, vocab] float32, minus infinity where a token must not be chosen.

    Not normalised again. All rows have the same parameters.
    """
    scores = logits.log_softmax(-1)
    for score, row in zip(scores, rows, strict=True):
        if is_constrained(row):
            constrain(score, row)
    params = rows[0].params
    for name in params.samplers:
        if name in PENALTIES and SAMPLERS[name].applies(params):
            scores = STAGES[name](scores, rows)
    return scores


def likeliest(scores: Tensor, count: int) -> list[list[tuple[int, float]]]:
    """For each row of scores [rows, vocab] its `count` best (token, score), the best first, ties by lower id.

    Tokens with a score of minus infinity are not among them.
    """
    thresholds = scores.topk(count, -1).values[:, -1:]
    result = []
    for row, candidate in zip(scores, (scores >= thresholds) & scores.isfinite(), strict=True):
        tokens = candidate.nonzero()[:, 0]
        ordered = row[tokens].sort(descending=True, stable=True)
        best = tokens[ordered.indices[:count]].tolist(), ordered.values[:count].tolist()
        result.append(list(zip(*best, strict=True)))
    return result
