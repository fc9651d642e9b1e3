"""From gradients to steps: AdamW, or Muon for the matrices inside a model."""

from typing import Any

import torch
from torch import nn

OPTIMIZERS = ("adamw", "muon")


class Together:
    """Two or more optimisers, each for its own parameters, in the place of one."""

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts: to set a learning rate, for example."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """One step of each part."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """The states of the parts, in their order."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Put back what `state_dict` gave."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def make_optimizer(
    name: str, model: nn.Module, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer | Together:
    """The optimiser of a model's parameters.

    adamw  Loshchilov and Hutter 2019, with betas 0.9 and 0.99
    muon   for the matrices inside, a step whose directions all have the same size
           (Jordan et al. 2024), scaled so that AdamW's learning rate fits it (Liu et
           al. 2025, 2502.16982); AdamW for embeddings, norms and biases. It takes
           fewer steps where long ones are affordable. Its sums are in bfloat16 inside,
           so two processors do not agree to the last digits.
    Raises ValueError for another name.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer={name!r}: give one of {', '.join(OPTIMIZERS)}")
    inside, others = [], []
    embeddings = {
        id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)
    }
    for parameter in model.parameters():
        matrix = parameter.dim() == 2 and id(parameter) not in embeddings
        (inside if matrix and name == "muon" else others).append(parameter)
    adamw = torch.optim.AdamW(
        others, lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay,
        fused=True,
    )  # fmt: skip
    if not inside:
        return adamw
    muon = torch.optim.Muon(
        inside, lr=learning_rate, weight_decay=weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    return Together(muon, adamw)
