"""How likely a model finds given tokens: what losses and references are made of."""

import torch
from torch import Tensor, nn


def completion_logits(
    model: nn.Module,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
) -> Tensor:
    """The logits (B, T, V) from which each completion token was to be chosen.

    prompt_ids, prompt_mask (B, S) left-padded; completion_ids, completion_mask
    (B, T) right-padded.
    """
    ids = torch.cat([prompt_ids, completion_ids], -1)
    mask = torch.cat([prompt_mask, completion_mask], -1)
    # Right padding is never read by a token before it: only left padding matters.
    logits, _ = model(ids, None if bool(prompt_mask.all()) else mask)
    return logits[:, prompt_ids.shape[1] - 1 : -1]


def token_logprobs(
    model: nn.Module,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    completion_mask: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """Log-probs (B, T), nats, of the completion tokens; 0 where masked.

    They are taken under softmax(logits / temperature): give the temperature at
    which the tokens were sampled. Gradients flow to the model.
    """
    logits = completion_logits(
        model, prompt_ids, prompt_mask, completion_ids, completion_mask
    )
    logprobs = torch.log_softmax(logits / temperature, -1)
    chosen = logprobs.gather(-1, completion_ids[..., None])[..., 0]
    return torch.where(completion_mask.bool(), chosen, torch.zeros_like(chosen))


def entropy(logits: Tensor) -> Tensor:
    """Entropy, nats, of softmax(logits) over the last dimension."""
    logprobs = torch.log_softmax(logits, -1)
    return -(logprobs.exp() * logprobs).sum(-1)
