"""A critic: one number for each position, read off a model's hidden states."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tokrl.models.base import LanguageModel


class ValueHead(nn.Module):
    """A linear map from hidden states to values.

    It starts at 0 everywhere: until it has learned, it claims nothing, and an
    advantage is the return itself.
    """

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (B, T, D) to values (B, T), in units of the reward."""
        return self.linear(hidden)[..., 0]


class ValueModel(LanguageModel):
    """A language model with a value head on the same hidden states.

    It samples and scores as the model does, whose weights it shares. The value at a
    position is that of the state after reading its token: V(s_t) stands in the
    column of y_{t-1}, where the logits of y_t stand.
    """

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model
        self.vocab_size = model.vocab_size
        self.width = model.width
        self.max_length = model.max_length
        self.reads_at_once = model.reads_at_once
        like = next(model.parameters())
        self.value_head = ValueHead(model.width).to(like.device, like.dtype)

    def head(self, hidden: Tensor) -> Tensor:
        """Scores (B, T, V) of the model."""
        return self.model.head(hidden)

    def new_cache(self, batch: int, size: int) -> Any:
        """An empty cache of the model."""
        return self.model.new_cache(batch, size)

    def hidden(
        self, ids: Tensor, mask: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """States (B, T, D) of the model."""
        return self.model.hidden(ids, mask, cache)

    @property
    def hidden_packed(self) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
        """That of the model, if it has one."""
        return self.model.hidden_packed

    def outputs(
        self, ids: Tensor, mask: Tensor | None = None, cache: Any = None
    ) -> tuple[Tensor, Tensor]:
        """States and logits of the model in one pass."""
        return self.model.outputs(ids, mask, cache)

    def values(
        self, ids: Tensor, mask: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """Values (B, T) after each token; arguments as for `hidden`."""
        return self.value_head(self.hidden(ids, mask, cache))

    def logits_and_values(
        self, ids: Tensor, mask: Tensor | None = None, cache: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V) and values (B, T) of one pass: actor and critic."""
        hidden, logits = self.outputs(ids, mask, cache)
        return logits, self.value_head(hidden)


def with_value_head(model: LanguageModel) -> ValueModel:
    """The model with a new value head, 0 everywhere; weights are shared, not copied.

    For a critic with a body of its own: `with_value_head(copy.deepcopy(model))`.
    """
    return ValueModel(model)
