"""The validation loss: every token of the split predicted once. Knows no optimiser and no file."""

import torch

from training.config import TrainingError
from training.dataset import TokenArray, whole_windows
from training.objective import Objective
from training.parallel import Workers
from training.progress import Validation


def validate(objective: Objective, tokens: TokenArray, batch_size: int, workers: Workers) -> Validation:
    """Mean loss in nats per token over adjacent, not overlapping windows of the model's context.

    The first tokens of a window are predicted from little, so its cross-entropy is an upper bound on what a sliding
    window would give. Dropout is off. Workers share the windows and all get the same answer.
    """
    if len(tokens) < 2:
        raise TrainingError(f"the validation split has {len(tokens)} tokens; it needs at least 2")
    objective.model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=objective.device)  # nats, agreements, tokens
    with torch.no_grad():
        for place, batch in enumerate(whole_windows(tokens, objective.model.config.context_length, batch_size)):
            if place % workers.size == workers.rank:
                losses = objective.losses(batch)
                agreement = losses.tokens.new_zeros(()) if losses.agreement is None else losses.agreement
                sums += torch.stack((losses.tokens, agreement, torch.ones_like(agreement))) * batch.targets.numel()
    objective.model.train()
    nats, agreements, count = workers.add_up(sums).tolist()
    return Validation(nats / count, None if objective.target is None else agreements / count)
