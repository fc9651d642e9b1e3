"""Several processes that train one model: who I am, and sums over all of us.

Started by `torchrun` or `accelerate launch`, each process calls `join`. Without that,
or alone, everything here does nothing.
"""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def join() -> int:
    """Meet the other processes of this launch, by gloo or by nccl; returns how many.

    Raises RuntimeError if the launcher announced more processes than have met.
    """
    announced = os.environ.get("WORLD_SIZE", "1")
    if not announced.isdecimal() or int(announced) < 1:
        raise RuntimeError(f"WORLD_SIZE={announced!r} in the environment: no number")
    expected = int(announced)
    if expected > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if count() != expected:
        raise RuntimeError(f"{expected} processes were announced, {count()} have met")
    return count()


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def number() -> int:
    """Which one this is, from 0; number 0 keeps the log and the checkpoints."""
    return dist.get_rank() if dist.is_initialized() else 0


def all_sum(*tensors: Tensor) -> None:
    """Replace each tensor by its sum over all processes, in place."""
    if count() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def from_first(value: Any) -> Any:
    """What process 0 has, on all of them."""
    values = [value]
    if count() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def from_all(value: Any) -> list[Any]:
    """What each process has, in their order, on all of them."""
    values = [value] * count()
    if count() > 1:
        dist.all_gather_object(values, value)
    return values
