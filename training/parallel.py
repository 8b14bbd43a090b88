"""The workers of a data-parallel run: average gradients, add up numbers, agree. Knows no model and no loop."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

TIMEOUT = timedelta(minutes=10)


class Workers(Protocol):
    """What the loop asks of the other workers. Every worker calls everything in the same order."""

    rank: int
    size: int

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its mean over workers."""

    def add_up(self, values: Tensor) -> Tensor:
        """The sum over workers."""

    def first(self, value: float) -> float:
        """The value of worker 0."""

    def wait(self) -> None:
        """Until every worker has come here."""

    def close(self) -> None:
        """Leave the group."""


class Alone:
    """The only worker."""

    rank = 0
    size = 1

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """The mean of one."""

    def add_up(self, values: Tensor) -> Tensor:
        """The sum of one."""
        return values

    def first(self, value: float) -> float:
        """Its own value."""
        return value

    def wait(self) -> None:
        """There is nobody to wait for."""

    def close(self) -> None:
        """There is no group."""


class ProcessGroup:
    """One of several processes started by torchrun, talking over gloo (CPU) or nccl (CUDA)."""

    def __init__(self, device: torch.device) -> None:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
        self.device = device
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """One reduction of one flat buffer: many small ones would each pay the latency."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        assert len(gradients) == len(parameters), "workers would disagree about who has a gradient"
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def add_up(self, values: Tensor) -> Tensor:
        """The sum over workers."""
        total = values.clone()
        dist.all_reduce(total)
        return total

    def first(self, value: float) -> float:
        """The value of worker 0."""
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(shared, src=0)
        return float(shared.item())

    def wait(self) -> None:
        """Until every worker has come here."""
        dist.barrier()

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()


def join_workers(environment: Mapping[str, str], device: torch.device) -> Workers:
    """The group that torchrun describes in `environment`, or nobody else."""
    return ProcessGroup(device) if int(environment.get("WORLD_SIZE", "1")) > 1 else Alone()
