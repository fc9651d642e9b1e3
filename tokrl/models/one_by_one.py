"""A Transformer that reads one token of each text at a time, in few calls."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from tokrl.models.gelu import gelu


class OneByOne:
    """The sums of the blocks for the next token of each text, and the last norm.

    Sampling waits for one token after the other, and of a small model a call takes
    longer than its sums: here what is the same for each token is looked up once, views
    too, and what can be is added in place. No gradients.

    keys, values  for each layer (B, heads, N, Dh), where those of each token are
                  written
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        norm: nn.LayerNorm,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
    ):
        self.norm = norm.weight, norm.bias
        self.layers = [
            (
                block.norm_1.weight, block.norm_1.bias, *_product(block.qkv),
                *_product(block.out), block.norm_2.weight, block.norm_2.bias,
                *_product(block.up), *_product(block.down), k, v,
                k.flatten(0, 1).mT, v.flatten(0, 1),
            )
            for block, k, v in zip(blocks, keys, values, strict=True)
        ]  # fmt: skip
        self.nothing = keys[0].new_empty(())

    def read(self, x: Tensor, length: int, bias: Tensor | None) -> Tensor:
        """States (B, D) after the token, from its embedding x (B, D), which is spent.

        length  tokens read before it
        bias    (B, 1, length + 1), as for `attention`; None if there is no padding
        """
        texts, heads, _, part = self.layers[0][-4].shape
        nothing, scale = self.nothing, 1 / math.sqrt(part)
        whole, split = x.shape[1:], (texts, 3, heads, part)
        flat = texts * heads, 1, part
        norm, addmm = torch.layer_norm, torch.addmm
        for (
            norm_1, shift_1, qkv, of_qkv, out, of_out,
            norm_2, shift_2, up, of_up, down, of_down, keys, values, k, v,
        ) in self.layers:  # fmt: skip
            new = addmm(of_qkv, norm(x, whole, norm_1, shift_1), qkv).view(split)
            query, key, value = new.unbind(1)
            keys.select(2, length).copy_(key)
            values.select(2, length).copy_(value)
            scores = torch.baddbmm(
                nothing, query.reshape(flat), k.narrow(2, 0, length + 1),
                beta=0, alpha=scale,
            )  # fmt: skip
            if bias is not None:
                scores.view(texts, heads, -1).add_(bias)
            mixed = torch.bmm(scores.softmax(-1), v.narrow(1, 0, length + 1))
            x = addmm(x.add_(of_out), mixed.view(x.shape), out)
            new = addmm(of_up, norm(x, whole, norm_2, shift_2), up)
            x = addmm(x.add_(of_down), gelu(new), down)
        return norm(x, whole, *self.norm)


def _product(part: nn.Linear) -> tuple[Tensor, Tensor]:
    """W and b of a linear map x W + b."""
    return part.weight.t(), part.bias
