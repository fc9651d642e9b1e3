"""Masked language modelling: hide some tokens, learn to put them back (BERT)."""

from collections.abc import Sequence

import torch
from torch import Tensor

IGNORED = -100  # the label that torch's and transformers' cross-entropy leave out


def mask_tokens(
    ids: Tensor,
    mask: Tensor,
    mask_id: int,
    vocab_size: int,
    generator: torch.Generator | None = None,
    share: float = 0.15,
    special_ids: Sequence[int] = (0, 1, 2, 3),
) -> tuple[Tensor, Tensor]:
    """Inputs and labels of a masked language model, for one pass over a batch.

    Each token is chosen with probability `share`, by itself; of the chosen, 80% become
    `mask_id`, 10% a token drawn at random and 10% stay as they are: Devlin et al.
    2019, section 3.1 and appendix A.1.

    ids          (B, T)
    mask         (B, T), 1 on tokens and 0 on padding
    mask_id      the id of `[MASK]`
    vocab_size   number of tokens, V
    generator    source of the draws
    special_ids  never chosen, never drawn; of our tokenizers these are `<pad>`,
                 `<bos>`, `<eos>` and `<unk>`. `mask_id` is one of them by itself.
    Returns inputs (B, T), and labels (B, T): the id where a token was chosen, -100
    elsewhere. In a small batch none may be chosen, and a mean over none is NaN.
    Raises ValueError for a share that is none, an id outside of the vocabulary, or a
    vocabulary of special tokens only.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share!r}: give a number above 0 and at most 1")
    special = torch.tensor(sorted({*special_ids, mask_id}), device=ids.device)
    if special[0] < 0 or special[-1] >= vocab_size:
        raise ValueError(
            f"mask_id={mask_id}, special_ids={tuple(special_ids)}: give ids from 0 to "
            f"{vocab_size - 1}, the last of vocab_size={vocab_size}"
        )
    plain = torch.ones(vocab_size, dtype=torch.bool, device=ids.device)
    plain[special] = False
    words = plain.nonzero()[:, 0]  # what may be chosen, and drawn
    if not len(words):
        raise ValueError(f"vocab_size={vocab_size}: all of its tokens are special")
    # One draw decides a token's fate: [mask | random | same | not chosen).
    fate = torch.rand(ids.shape, generator=generator, dtype=torch.float64) / share
    drawn = torch.randint(len(words), ids.shape, generator=generator)
    fate, drawn = fate.to(ids.device), words[drawn.to(ids.device)]
    chosen = (fate < 1) & mask.bool() & plain[ids]
    labels = torch.where(chosen, ids, torch.full_like(ids, IGNORED))
    inputs = torch.where(chosen & (fate < 0.9), drawn, ids)
    inputs = torch.where(chosen & (fate < 0.8), torch.full_like(ids, mask_id), inputs)
    return inputs, labels
