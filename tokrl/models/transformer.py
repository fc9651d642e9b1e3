"""A decoder-only Transformer, written out: Vaswani et al. 2017, in GPT-2's form.

Learned positions, layer norm before each part, GELU, and one matrix that both
embeds the tokens and scores them (Radford et al. 2019).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokrl.models.attention import KVCache, as_bias, attention
from tokrl.models.base import LanguageModel
from tokrl.models.linear import Linear, linear, may_take_onednn
from tokrl.models.one_by_one import OneByOne

# Up to here attention is faster as it is written out, beyond by torch's fused kernel.
FEW_QUERIES, FEW_KEYS = 8, 64


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
        self, x: Tensor, bias: Tensor | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        x = x + self.attend(self.norm_1(x), bias, cache, layer)
        return x + self.down(self.up.gelu(self.norm_2(x)))

    def attend(
        self, x: Tensor, bias: Tensor | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        """Mix what came before into each position; x and result (B, T, D).

        bias  for `attention`; None if each position sees all but what follows it. Of
              many tokens torch's fused kernel does the same faster. It has no second
              derivative: where you need one, work under
              `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.
        """
        batch, length, width = x.shape
        q, k, v = self.split(x)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        if bias is None and length > 1:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif length <= FEW_QUERIES or k.shape[2] <= FEW_KEYS:
            mixed = attention(q, k, v, bias)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
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
        heads = self.config.heads
        nothing = self.token_embedding.weight.new_empty(
            batch, heads, 0, self.width // heads
        )
        return KVCache(self.config.layers, nothing, size)

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
            if length == 1 and real is None and self._brief(cache):
                return self._one_more(ids[:, 0], cache)[:, None]
            real = cache.mark(length, real)
        if real is None:
            positions = torch.arange(past, past + length, device=ids.device)
        else:
            positions = (real.long().cumsum(-1) - 1).clamp(min=0)[:, past:]  # (B, T)
        x = self.token_embedding(ids) + self.position_embedding(positions)
        bias = None
        if real is not None or (past > 0 and length > 1):
            seen = self._seen(real, length, past + length, ids.device)
            bias = as_bias(seen, x)
        x = self._through_blocks(x, bias, cache)
        if cache is not None:
            cache.length += length
        return x

    def _brief(self, cache: KVCache) -> bool:
        """Whether `OneByOne` reads the next tokens: no gradient, and no slower."""
        quick = not may_take_onednn(self.token_embedding.weight.dtype)
        return quick and cache.length > 0 and not torch.is_grad_enabled()

    def _one_more(self, ids: Tensor, cache: KVCache) -> Tensor:
        """States (B, D) after one more token (B,) of each text."""
        words, places = self.token_embedding.weight, self.position_embedding.weight
        place, bias = cache.length, None
        if cache.mask is not None:
            place = cache.mask.sum(-1)  # tokens before it
            bias = as_bias(cache.mark(1, None), words)[:, None]
        cache.make_room()
        if cache.reader is None:
            cache.reader = OneByOne(self.blocks, self.norm, cache.keys, cache.values)
        x = F.embedding(ids, words) + places[place]
        x = cache.reader.read(x, cache.length, bias)
        cache.length += 1
        return x

    def hidden_packed(self, ids: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        """States (R, L, D) of rows in which several texts lie side by side.

        ids, positions  (R, L): each token, and its place in its own text, from 0
        seen            (R, L, L) bool: the keys that each query sees, itself included
        Raises ValueError if a place is beyond `max_length`.
        """
        self.check_length(int(positions.max()) + 1)
        x = self.token_embedding(ids) + self.position_embedding(positions)
        return self._through_blocks(x, as_bias(seen[:, None], x), None)

    def _through_blocks(
        self, x: Tensor, bias: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """From embedded tokens (B, T, D) to states after the last norm, (B, T, D)."""
        for layer, block in enumerate(self.blocks):
            x = block(x, bias, cache, layer)
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
            weights.append(attention(q, k, each, as_bias(at <= at[:, None], x)))
            x = block(x, None, None, layer)
        return weights

    @staticmethod
    def _seen(
        real: Tensor | None, length: int, size: int, device: torch.device
    ) -> Tensor:
        """Which of the N = size keys each of the last `length` queries may see.

        Returns bool: (B, 1, T, N), or (T, N) if all tokens are real. A padding position
        sees itself, so that its softmax stays finite.
        """
        query = torch.arange(size - length, size, device=device)[:, None]
        key = torch.arange(size, device=device)
        if real is None:
            return key <= query
        return (key <= query) & (real[:, None, None, :] | (key == query))
