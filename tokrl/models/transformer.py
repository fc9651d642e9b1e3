"""A decoder-only Transformer, written out: Vaswani et al. 2017, in GPT-2's form.

Learned positions, layer norm before each part, GELU, and one matrix that both
embeds the tokens and scores them (Radford et al. 2019).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokrl.models.base import LanguageModel
from tokrl.models.linear import Linear, linear


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a Transformer.

    vocab_size   number of tokens, V
    width        size of a token's vector, D
    layers       number of blocks
    heads        attention heads in each block; divides the width
    max_length   longest sequence, prompt and completion together
    """

    vocab_size: int
    width: int = 64
    layers: int = 2
    heads: int = 4
    max_length: int = 256

    def __post_init__(self):
        for name in ("vocab_size", "width", "layers", "heads", "max_length"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: give a whole number of at least 1")
        if self.width % self.heads:
            raise ValueError(
                f"width={self.width} is not a multiple of heads={self.heads}"
            )


class KVCache:
    """Keys and values of the tokens read so far.

    Where no gradient is asked for they are written into memory that is taken once.

    keys, values  one tensor (B, heads, N, D / heads) for each layer, N >= length
    length        columns in use
    mask          (B, length) bool, true where a real token was read; None if all were
    size          columns that memory is taken for
    """

    def __init__(self, config: TransformerConfig, batch: int, size: int, like: Tensor):
        nothing = like.new_empty(batch, config.heads, 0, config.width // config.heads)
        self.keys = [nothing] * config.layers
        self.values = [nothing] * config.layers
        self.length = 0
        self.mask: Tensor | None = None
        self.size = size

    def keep(self, rows: Tensor) -> None:
        """Keep these rows (a long tensor of row numbers) and drop the others."""
        self.keys, self.values = (
            [part[:, :, : self.length].index_select(0, rows) for part in parts]
            for parts in (self.keys, self.values)
        )
        if self.mask is not None:
            self.mask = self.mask[rows]

    def mark(self, length: int, mask: Tensor | None) -> Tensor | None:
        """Note which of `length` new tokens are real; returns the mask of all so far.

        mask  (B, length) bool; None if all are
        """
        if mask is None and self.mask is None:
            return None
        real = [self.mask, mask]
        for i, columns in enumerate((self.length, length)):
            if real[i] is None:
                shape = (self.keys[0].shape[0], columns)
                real[i] = torch.ones(shape, dtype=torch.bool, device=real[1 - i].device)
        self.mask = torch.cat(real, -1)
        return self.mask

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, heads, T, Dh) of new tokens; returns those of all."""
        start, end = self.length, self.length + k.shape[2]
        for parts, new in ((self.keys, k), (self.values, v)):
            if torch.is_grad_enabled():
                parts[layer] = torch.cat([parts[layer][:, :, :start], new], 2)
                continue
            if end > parts[layer].shape[2]:  # at first, and after rows were dropped
                batch, heads, _, width = new.shape
                room = new.new_empty(batch, heads, max(end, self.size), width)
                room[:, :, :start] = parts[layer][:, :, :start]
                parts[layer] = room
            parts[layer][:, :, start:end] = new
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


def attention(q: Tensor, k: Tensor, v: Tensor, blocked: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(Dh)) v: Vaswani et al. 2017, equation 1.

    q        (B, heads, T, Dh), one query for each position
    k, v     (B, heads, N, Dh)
    blocked  bool, fits (B, heads, T, N): the keys that a query must not see; None
             if it may see all. No query may have all its keys blocked.
    Returns (B, heads, T, Dh).
    """
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (B, heads, T, N)
    if blocked is not None:
        scores = scores.masked_fill(blocked, -math.inf)
    return scores.softmax(-1) @ v


class Block(nn.Module):
    """Attention, then a two-layer network, each added to what came in."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm_1 = nn.LayerNorm(width)
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.norm_2 = nn.LayerNorm(width)
        self.up = Linear(width, 4 * width)
        self.down = Linear(4 * width, width)

    def forward(
        self, x: Tensor, blocked: Tensor | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        x = x + self.attend(self.norm_1(x), blocked, cache, layer)
        return x + self.down(self.up.gelu(self.norm_2(x)))

    def attend(
        self, x: Tensor, blocked: Tensor | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        """Mix what came before into each position; x and result (B, T, D).

        blocked  for `attention`; None if just what follows a position is. For more
                 than one position torch's fused kernel does the same faster, the more
                 so the longer the text. It has no second derivative: where you need
                 one, work under `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.
        """
        batch, length, width = x.shape
        q, k, v = self.split(x)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        if length == 1:
            mixed = attention(q, k, v, blocked)
        elif blocked is None:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=~blocked)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, each (B, heads, T, Dh), of x (B, T, D)."""
        batch, length, width = x.shape
        shape = (batch, length, 3, self.heads, width // self.heads)
        return self.qkv(x).view(shape).permute(2, 0, 3, 1, 4).unbind()


class Transformer(LanguageModel):
    """A language model: ids in, a score for every possible next token out."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.width = config.width
        self.max_length = config.max_length
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.max_length, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self._initialise()

    def _initialise(self) -> None:
        """Normal weights that keep the size of a signal: variance 1 / inputs.

        Smaller where a block adds its part, as in GPT-2, so that depth does not
        blow the sum up. GPT-2's own 0.02 is this rule at width 2,500: at the widths
        of this book it starts too small, and copying is learned far later.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                last = name.endswith(("out.weight", "down.weight"))
                depth = 2 * self.config.layers if last else 1
                nn.init.normal_(
                    parameter, std=1 / math.sqrt(parameter.shape[1] * depth)
                )

    def new_cache(self, batch: int, size: int) -> KVCache:
        """An empty cache for `batch` rows of up to `size` tokens."""
        return KVCache(self.config, batch, size, self.token_embedding.weight)

    def head(self, hidden: Tensor) -> Tensor:
        """Scores (B, T, V): how well each token's vector fits the hidden state."""
        return linear(hidden, self.token_embedding.weight)

    def hidden(
        self, ids: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """States (B, T, D) after the last norm; see `LanguageModel.hidden`."""
        length = ids.shape[1]
        past = cache.length if cache is not None else 0
        self.check_length(past + length)
        real = None if mask is None or bool(mask.all()) else mask.bool()
        if cache is not None:
            real = cache.mark(length, real)
        if real is None:
            positions = torch.arange(past, past + length, device=ids.device)
        else:
            positions = (real.long().cumsum(-1) - 1).clamp(min=0)[:, past:]  # (B, T)
        x = self.token_embedding(ids) + self.position_embedding(positions)
        blocked = None
        if real is not None or (past > 0 and length > 1):
            blocked = self._blocked(real, length, past + length, ids.device)
        x = self._through_blocks(x, blocked, cache)
        if cache is not None:
            cache.length += length
        return x

    def hidden_packed(self, ids: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        """States (R, L, D) of rows in which several texts lie side by side.

        ids, positions  (R, L): each token, and its place in its own text, from 0
        seen            (R, L, L) bool: the keys that each query sees, itself included
        Raises ValueError if a place is beyond `max_length`.
        """
        self.check_length(int(positions.max()) + 1)
        x = self.token_embedding(ids) + self.position_embedding(positions)
        return self._through_blocks(x, ~seen[:, None], None)

    def _through_blocks(
        self, x: Tensor, blocked: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """From embedded tokens (B, T, D) to states after the last norm, (B, T, D)."""
        for layer, block in enumerate(self.blocks):
            x = block(x, blocked, cache, layer)
        return self.norm(x)

    @torch.no_grad()
    def attention_weights(self, ids: Tensor) -> list[Tensor]:
        """What share of each earlier position every position takes, block by block.

        ids  (B, T) int64, without padding
        Returns (B, heads, T, T) for each block: entry (t, s) is the weight of position
        s at position t. Each row sums to 1, and is 0 where s > t.
        Raises ValueError if a sequence is longer than `max_length`.
        """
        length = ids.shape[1]
        self.check_length(length)
        at = torch.arange(length, device=ids.device)
        x = self.token_embedding(ids) + self.position_embedding(at)
        # The mix of the rows of an identity is the weights themselves.
        each = torch.eye(length, dtype=x.dtype, device=x.device)
        weights = []
        for layer, block in enumerate(self.blocks):
            q, k, _ = block.split(block.norm_1(x))
            weights.append(attention(q, k, each, at > at[:, None]))
            x = block(x, None, None, layer)
        return weights

    @staticmethod
    def _blocked(
        real: Tensor | None, length: int, size: int, device: torch.device
    ) -> Tensor:
        """Which of the N = size keys each of the last `length` queries must not see.

        Returns bool, true where blocked: (B, 1, T, N), or (T, N) if all tokens are
        real. A padding position sees itself, so that its softmax stays finite.
        """
        query = torch.arange(size - length, size, device=device)[:, None]
        key = torch.arange(size, device=device)
        if real is None:
            return key > query
        return (key > query) | (~real[:, None, None, :] & (key != query))
