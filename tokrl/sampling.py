"""Drawing text from a model, token by token, with the log-probs of what was drawn."""

import torch
from torch import Tensor, nn


def _check(temperature: float, top_k: int, top_p: float) -> None:
    if not temperature > 0:
        raise ValueError(
            f"temperature={temperature!r}: give a number above 0; for the likeliest "
            "token each time, give top_k=1"
        )
    if top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"top_k={top_k!r}, top_p={top_p!r}: top_k is at least 0 (0 keeps all), "
            "top_p above 0 and at most 1 (1 keeps all)"
        )


def sample_next_token(
    logits: Tensor,
    uniform: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """One token for each row, by inverse CDF.

    logits   (B, V)
    uniform  (B,) in [0, 1): the draw. The token is the first whose cumulative
             probability exceeds it, so that the same draw gives the same token
             wherever the probabilities agree.
    top_k    keep the k likeliest tokens (0: all)
    top_p    keep the likeliest tokens up to this mass, at least one (1: all)
    Returns ids (B,) and their logprobs (B,), nats, under softmax(logits /
    temperature): what was kept does not change them, so they equal those of
    `tokrl.scoring.token_logprobs` at the same temperature.
    """
    _check(temperature, top_k, top_p)
    logprobs = torch.log_softmax(logits / temperature, -1)
    probs = logprobs.exp()
    if 0 < top_k < logits.shape[-1]:
        least = probs.topk(top_k, -1).values[:, -1:]
        probs = torch.where(probs >= least, probs, 0.0)
    if top_p < 1:
        ranked, order = probs.sort(dim=-1, descending=True, stable=True)
        before = ranked.cumsum(-1) - ranked
        ranked = torch.where(before < top_p * ranked.sum(-1, keepdim=True), ranked, 0.0)
        probs = torch.zeros_like(probs).scatter(-1, order, ranked)
    cumulative = probs.double().cumsum(-1)
    target = uniform.double()[:, None] * cumulative[:, -1:]
    ids = torch.searchsorted(cumulative, target, right=True)
    ids = ids.clamp(max=logits.shape[-1] - 1)
    return ids[:, 0], logprobs.gather(-1, ids)[:, 0]


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    eos_id: int | None = None,
    generator: torch.Generator | None = None,
    pad_id: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Continue prompts until each has ended or has `max_new_tokens` more tokens.

    prompt_ids, prompt_mask  (B, S), left-padded
    eos_id                   the token that ends a row; None: no row ends early
    generator                source of the draws; a row's tokens depend on its own
                             draws only, not on when other rows end
    Returns completion_ids (B, T), completion_mask (B, T), 1 up to and including the
    first end token, and logprobs (B, T), nats, 0 where masked; T is the longest
    completion.
    """
    _check(temperature, top_k, top_p)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens!r}: give at least 1")
    batch, prompt_length = prompt_ids.shape
    ids = torch.full((batch, max_new_tokens), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    logprobs = torch.zeros(batch, max_new_tokens)
    cache = model.new_cache(batch, prompt_length + max_new_tokens - 1)
    alive = torch.arange(batch)
    logits, cache = model(prompt_ids, prompt_mask, cache)
    for t in range(max_new_tokens):
        uniform = torch.rand(batch, generator=generator, dtype=torch.float64)[alive]
        token, logprob = sample_next_token(
            logits[:, -1], uniform, temperature, top_k, top_p
        )
        ids[alive, t] = token
        logprobs[alive, t] = logprob.to(logprobs.dtype)
        mask[alive, t] = 1
        if eos_id is not None:
            going = token != eos_id
            if not going.all():
                alive, token = alive[going], token[going]
                cache.keep(going.nonzero()[:, 0])
        if not len(alive):
            break
        if t + 1 < max_new_tokens:
            logits, cache = model(token[:, None], None, cache)
    length = int(mask.sum(-1).max())
    return ids[:, :length], mask[:, :length], logprobs[:, :length]
