"""Language models that read one token after the other: RNN, LSTM, GRU.

The cells are torch's own: Elman 1990; Hochreiter and Schmidhuber 1997, with the
forget gate of Gers et al. 2000; Cho et al. 2014. What a cell has read is all in a
state of fixed size, so that, unlike a Transformer, it reads texts of any length.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tokrl.models.base import LanguageModel
from tokrl.models.linear import Linear, linear

CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


@dataclass(frozen=True)
class RecurrentConfig:
    """The shape of a recurrent model.

    vocab_size  number of tokens, V
    width       size of a token's vector and of a layer's state, D
    layers      cells on top of each other
    cell        rnn, lstm or gru
    tied        one matrix embeds the tokens and scores them (Press and Wolf 2017);
                false: the scores have a matrix of their own
    """

    vocab_size: int
    width: int = 64
    layers: int = 2
    cell: str = "lstm"
    tied: bool = True

    def __post_init__(self):
        for name in ("vocab_size", "width", "layers"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: give a whole number of at least 1")
        if self.cell not in CELLS:
            raise ValueError(f"cell={self.cell!r}: give one of {', '.join(CELLS)}")


class RecurrentCache:
    """The state after the tokens read so far.

    state  one tensor (layers, B, D) of an RNN or GRU; two of an LSTM, what it shows
           and what it keeps
    """

    def __init__(self, state: tuple[Tensor, ...]):
        self.state = state

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (a long tensor of row numbers)."""
        self.state = tuple(part[:, rows] for part in self.state)


class Recurrent(LanguageModel):
    """A language model whose memory is the state of its cells."""

    reads_at_once = False

    def __init__(self, config: RecurrentConfig):
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.width = config.width
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.cells = CELLS[config.cell](
            config.width, config.width, config.layers, batch_first=True
        )
        if not config.tied:
            self.out = Linear(config.width, config.vocab_size, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        """Weights that keep the size of a signal, forward and back in time.

        Normal with variance 1 / inputs from below; orthogonal, each gate by itself,
        from the step before (Saxe et al. 2014); the LSTM's forget gate starts open,
        with bias 1 (Gers et al. 2000; Jozefowicz et al. 2015).
        """
        width = self.width
        for name, parameter in self.named_parameters():
            if "bias" in name:
                nn.init.zeros_(parameter)
                if self.config.cell == "lstm" and "bias_ih" in name:
                    # torch's order of gates: input, forget, cell, output.
                    nn.init.ones_(parameter.data[width : 2 * width])
            elif "weight_hh" in name:
                for gate in parameter.data.split(width):
                    nn.init.orthogonal_(gate)
            else:
                nn.init.normal_(parameter, std=1 / math.sqrt(width))

    def new_cache(self, batch: int, size: int) -> RecurrentCache:
        """The state of `batch` rows before the first token, whatever their size."""
        parts = 2 if self.config.cell == "lstm" else 1
        zeros = self.token_embedding.weight.new_zeros(
            self.config.layers, batch, self.width
        )
        return RecurrentCache((zeros,) * parts)

    def head(self, hidden: Tensor) -> Tensor:
        """Scores (B, T, V): how well each token's vector fits the hidden state."""
        tied = self.config.tied
        weight = self.token_embedding.weight if tied else self.out.weight
        return linear(hidden, weight)

    def hidden(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        cache: RecurrentCache | None = None,
    ) -> Tensor:
        """States (B, T, D) of the top cell; see `LanguageModel.hidden`.

        The state does not advance on padding, wherever in a row it stands.
        """
        x = self.token_embedding(ids)
        state = None if cache is None else cache.state
        if mask is None or bool(mask.all()):
            hidden, state = self._run(x, state)
        else:
            # Tokens to the front, in their order: then one run reads all rows.
            order = mask.bool().long().argsort(dim=-1, descending=True, stable=True)
            x = x.gather(1, order[..., None].expand_as(x))
            if cache is None:
                hidden, _ = self._run(x, None)  # what follows a row reads no token
            else:
                hidden, state = self._run_ragged(x, mask.bool().sum(-1), state)
            back = torch.zeros_like(hidden)
            hidden = back.scatter(1, order[..., None].expand_as(hidden), hidden)
        if cache is not None:
            cache.state = state
        return hidden

    def _run(
        self, x: Tensor, state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """All cells over x (B, T, D), from the zero state if it is None."""
        if self.config.cell == "lstm":
            return self.cells(x, state)
        hidden, last = self.cells(x, None if state is None else state[0])
        return hidden, (last,)

    def _run_ragged(
        self, x: Tensor, lengths: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The same where row i ends after lengths[i] tokens: its state stops there."""
        packed = pack_padded_sequence(
            x, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        hidden, last = self._run(packed, state)
        hidden, _ = pad_packed_sequence(
            hidden, batch_first=True, total_length=x.shape[1]
        )
        read = (lengths > 0)[:, None]  # a row without a token keeps its state
        pairs = zip(last, state, strict=True)
        return hidden, tuple(torch.where(read, new, old) for new, old in pairs)
