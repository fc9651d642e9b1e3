"""Drawing text from a model, token by token, with the log-probs of what was drawn."""

import math

import torch
from torch import Tensor, nn

from tokrl.masking import require_prompts

COLDEST = 1e-6  # logits over less are beyond what float32 can hold


def check_choice(temperature: float, top_k: int = 0, top_p: float = 1.0) -> None:
    """ValueError for what no token can be drawn with; see `sample_next_token`."""
    if not temperature >= COLDEST:
        raise ValueError(
            f"temperature={temperature!r}: give a number above 0, at least {COLDEST}; "
            "for the likeliest token each time, give top_k=1"
        )
    if top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"top_k={top_k!r}, top_p={top_p!r}: top_k is at least 0 (0 keeps all), "
            "top_p above 0 and at most 1 (1 keeps all)"
        )


def keep_likeliest(probs: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Probabilities (..., V) as they are where tokens are kept, and 0 elsewhere.

    top_k, top_p  see `sample_next_token`; of what top_k keeps, top_p keeps its share.
                  Of equally likely tokens those with the lower ids are kept.
    Sources: Fan et al. 2018 (top-k), Holtzman et al. 2020 (top-p).
    """
    if 0 < top_k < probs.shape[-1]:
        least = probs.topk(top_k, -1).values[..., -1:]
        more, equal = probs > least, probs == least
        room = top_k - more.sum(-1, keepdim=True)
        kept = more | (equal & (equal.cumsum(-1) <= room))
        probs = torch.where(kept, probs, 0.0)
    if top_p < 1:
        ranked, order = probs.sort(dim=-1, descending=True, stable=True)
        before = ranked.cumsum(-1) - ranked
        kept = before < top_p * ranked.sum(-1, keepdim=True)
        kept[..., 0] = True  # even where the product is too small to be a number
        ranked = torch.where(kept, ranked, 0.0)
        probs = torch.zeros_like(probs).scatter(-1, order, ranked)
    return probs


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
    Raises ValueError for another temperature, top_k or top_p, FloatingPointError that
    names a row whose logits are NaN, or all minus infinity.
    """
    check_choice(temperature, top_k, top_p)
    whole = torch.softmax(logits if temperature == 1 else logits / temperature, -1)
    probs = keep_likeliest(whole, top_k, top_p)
    cumulative = probs.double().cumsum(-1)
    total = cumulative[:, -1:]
    if not (total > 0).all():
        row = int((~(total > 0)).nonzero()[0, 0])
        raise FloatingPointError(
            f"row {row}: no token can be drawn, its logits are NaN or minus infinity"
        )
    target = uniform.double()[:, None] * total
    ids = torch.searchsorted(cumulative, target, right=True)
    ids = ids.clamp(max=logits.shape[-1] - 1)
    return ids[:, 0], whole.gather(-1, ids)[:, 0].log()


def distinct_prompts(
    prompt_ids: Tensor, prompt_mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Each different prompt once, so that a group's is read once.

    prompt_ids, prompt_mask  (B, S)
    Returns ids and mask (P, S), and for each of the B rows the number of its prompt.
    """
    rows = torch.cat([prompt_ids, prompt_mask], -1)
    rows, of = rows.unique(dim=0, return_inverse=True)
    ids, mask = rows.tensor_split(2, -1)
    return ids, mask, of


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
    Prompts that are equal are read once. All is on the device of the prompts; the
    draws are made where the generator is, so that they are the same everywhere.
    Returns completion_ids (B, T), completion_mask (B, T), 1 up to and including the
    first end token, and logprobs (B, T), nats, 0 where masked; T is the longest
    completion.
    Raises ValueError for a number of tokens below 1, prompts of another layout, tokens
    that the model does not know, and as `sample_next_token` does.
    """
    require_prompts(prompt_ids, prompt_mask, model)
    check_choice(temperature, top_k, top_p)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens!r}: give at least 1")
    with torch.inference_mode():
        made = _continue(
            model, prompt_ids, prompt_mask, max_new_tokens, (temperature, top_k, top_p),
            eos_id, generator, pad_id,
        )  # fmt: skip
    ids, mask, logprobs = (tensor.clone() for tensor in made)  # these, autograd takes
    return ids, mask, logprobs


def _continue(
    model: nn.Module,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    max_new_tokens: int,
    choice: tuple[float, int, float],
    eos_id: int | None,
    generator: torch.Generator | None,
    pad_id: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`generate`, given what is right; `choice` is temperature, top_k and top_p."""
    batch, prompt_length = prompt_ids.shape
    device = prompt_ids.device
    source = "cpu" if generator is None else generator.device
    ids = torch.zeros(batch, max_new_tokens, dtype=torch.int64, device=device)
    logprobs = torch.zeros(batch, max_new_tokens, device=device)
    lengths = torch.full((batch,), max_new_tokens, device=device)
    prompts, masks, of = distinct_prompts(prompt_ids, prompt_mask)
    cache = model.new_cache(len(prompts), prompt_length + max_new_tokens - 1)
    logits, cache = model(prompts, masks, cache)
    logits = logits[of, -1:]
    cache.keep(of)
    rows = torch.arange(batch, device=device)  # those in the cache
    for t in range(max_new_tokens):
        uniform = torch.rand(
            batch, generator=generator, dtype=torch.float64, device=source
        ).to(device)
        if len(rows) < batch:
            uniform = uniform[rows]
        token, logprob = sample_next_token(logits[:, -1], uniform, *choice)
        ids[:, t].index_copy_(0, rows, token)
        logprobs[:, t].index_copy_(0, rows, logprob.to(logprobs.dtype))
        if eos_id in token.tolist():
            ended = rows[token == eos_id]
            lengths[ended] = lengths[ended].clamp(max=t + 1)
            going = lengths[rows] > t + 1
            if not going.any():
                break
            if len(kept := _rows_to_keep(going)) < len(rows):
                cache.keep(kept)
                rows, token = rows[kept], token[kept]
        if t + 1 < max_new_tokens:
            logits, cache = model(token[:, None], None, cache)
    length = int(lengths.max())
    mask = torch.arange(length, device=device) < lengths[:, None]
    ids = ids[:, :length].masked_fill(~mask, pad_id)
    return ids, mask.long(), logprobs[:, :length].masked_fill(~mask, 0.0)


def _rows_to_keep(going: Tensor) -> Tensor:
    """The numbers of the rows to go on with, given which have not ended, bool.

    To drop rows is to copy the cache, and matrix libraries prepare themselves for each
    new size: so no fewer than a quarter go at once, and a multiple of 8 stays, with
    ended rows to fill it up.
    """
    size = 8 * math.ceil(int(going.sum()) / 8)
    if size > 0.75 * len(going):
        return torch.arange(len(going), device=going.device)
    return going.sort(descending=True, stable=True).indices[:size]


@torch.no_grad()
def beam_search(
    model: nn.Module,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    max_new_tokens: int,
    width: int,
    eos_id: int | None = None,
    pad_id: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The likeliest continuation of each prompt that a beam search finds.

    After each token the `width` beginnings of the highest total log-prob are kept and
    all others given up. One that has ended stays as it is and competes with those that
    go on: nothing is divided by length, so short ones are at an advantage, as they are
    in the model. A row is done when its best has ended, for what goes on can only
    become less likely. With width 1 it is greedy; with a width of all beginnings exact.

    prompt_ids, prompt_mask  (B, S), left-padded
    eos_id                   the token that ends a row; None: no row ends early
    Returns completion_ids (B, T), completion_mask (B, T) and logprobs (B, T), nats, as
    `generate` does; the sum of a row's logprobs is what was to be high.
    Raises ValueError for a width or a number of tokens below 1, prompts of another
    layout, or tokens that the model does not know.
    """
    require_prompts(prompt_ids, prompt_mask, model)
    for name, value in (("max_new_tokens", max_new_tokens), ("width", width)):
        if value < 1:
            raise ValueError(f"{name}={value!r}: give at least 1")
    batch, prompt_length = prompt_ids.shape
    device = prompt_ids.device
    cache = model.new_cache(batch, prompt_length + max_new_tokens - 1)
    logits, cache = model(prompt_ids, prompt_mask, cache)
    first = torch.arange(batch, device=device)[:, None] * width  # each row's in (B W)
    cache.keep(torch.arange(batch, device=device).repeat_interleave(width))
    logits = logits[:, -1].repeat_interleave(width, 0)  # (B W, V)
    ids = torch.full((batch, width, max_new_tokens), pad_id, device=device)
    logprobs = logits.new_zeros(batch, width, max_new_tokens)
    mask = torch.zeros_like(ids)
    going = torch.ones(batch, width, dtype=torch.bool, device=device)
    totals = logits.new_full((batch, width), -math.inf)
    totals[:, 0] = 0.0  # all start alike: only one may go on
    for t in range(max_new_tokens):
        step = torch.log_softmax(logits, -1).view(batch, width, -1)
        ended = torch.full_like(step[0, 0], -math.inf)
        ended[pad_id] = 0.0  # goes on in one way, which costs nothing
        step = torch.where(going[..., None], step, ended)
        totals, best = (totals[..., None] + step).flatten(1).topk(width, -1)
        parent, token = best // step.shape[-1], best % step.shape[-1]  # (B, W)
        ids, mask, logprobs, going = (
            kept.gather(1, parent.view(batch, width, *[1] * (kept.dim() - 2))
                        .expand_as(kept))
            for kept in (ids, mask, logprobs, going)
        )  # fmt: skip
        ids[..., t], mask[..., t] = token, going
        logprobs[..., t] = step.flatten(1).gather(1, best)
        if eos_id is not None:
            going &= token != eos_id
        if not going[:, 0].any():
            break
        if t + 1 < max_new_tokens:
            cache.keep((first + parent).flatten())
            logits, cache = model(token.view(-1, 1), None, cache)
    length = int(mask[:, 0].sum(-1).max())
    return ids[:, 0, :length], mask[:, 0, :length], logprobs[:, 0, :length]
