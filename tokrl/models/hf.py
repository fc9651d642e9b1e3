"""Any causal language model of Hugging Face's transformers, behind our protocol."""

import copy
import inspect
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokrl.models.base import LanguageModel

if TYPE_CHECKING:  # transformers loads slowly: only those who bring a model need it
    from transformers import DynamicCache, PreTrainedModel


class HFCache:
    """What a Hugging Face model remembers, and which of it is padding.

    past    the library's own cache
    mask    (B, N) bool, true where a real token was read
    length  columns in use
    """

    def __init__(self, past: "DynamicCache", mask: Tensor):
        self.past = past
        self.mask = mask
        self.length = 0

    def __copy__(self) -> "HFCache":
        """One that forgets and goes on by itself; it shares what was read so far."""
        past = copy.copy(self.past)
        past.layers = [copy.copy(layer) for layer in past.layers]
        other = HFCache(past, self.mask.clone())
        other.length = self.length
        return other

    def keep(self, rows: Tensor) -> None:
        """Keep these rows (a long tensor of row numbers) and drop the others."""
        self.past.batch_select_indices(rows)
        self.mask = self.mask[rows]


class HFModel(LanguageModel):
    """A `...ForCausalLM` that answers to `logits, cache = model(ids, mask, cache)`.

    Type and device are the model's. It is put into evaluation mode, as dropout would
    give sampling and scoring different log-probs; `.train()` undoes that.
    `max_length` is the configuration's `max_position_embeddings`.
    """

    def __init__(self, model: "PreTrainedModel"):
        super().__init__()
        if getattr(model, "get_output_embeddings", lambda: None)() is None:
            raise ValueError(
                f"{type(model).__name__} scores no next tokens: give a model with a "
                "language-model head, such as one from AutoModelForCausalLM"
            )
        config = model.config.get_text_config()
        if config.is_encoder_decoder:
            raise ValueError(
                f"{type(model).__name__} reads a source and writes a target: give a "
                "model that only continues a text, such as GPT2LMHeadModel"
            )
        self.hf = model.eval()
        self.vocab_size = config.vocab_size
        self.width = config.hidden_size
        self.max_length = getattr(config, "max_position_embeddings", None)
        known = inspect.signature(model.base_model.forward).parameters
        self._takes_positions = "position_ids" in known

    def new_cache(self, batch: int, size: int) -> HFCache:
        """An empty cache for `batch` rows of up to `size` tokens."""
        from transformers import DynamicCache

        mask = torch.zeros(batch, size, dtype=torch.bool, device=self.hf.device)
        return HFCache(DynamicCache(config=self.hf.config), mask)

    def head(self, hidden: Tensor) -> Tensor:
        """Scores (B, T, V) of the output layer.

        A few architectures rescale or cap their scores after it; `forward` and
        `outputs` do, `head` does not.
        """
        return self.hf.get_output_embeddings()(hidden)

    def hidden(
        self, ids: Tensor, mask: Tensor | None = None, cache: HFCache | None = None
    ) -> Tensor:
        """States (B, T, D) before the output layer; see `LanguageModel.hidden`."""
        options = self._options(ids, mask, cache)
        hidden = self.hf.base_model(ids, **options).last_hidden_state
        return self._read(hidden, ids, cache)

    def outputs(
        self, ids: Tensor, mask: Tensor | None = None, cache: HFCache | None = None
    ) -> tuple[Tensor, Tensor]:
        """States (B, T, D) and logits (B, T, V) of one pass."""
        options = self._options(ids, mask, cache)
        out = self.hf(ids, output_hidden_states=True, **options)
        return self._read(out.hidden_states[-1], ids, cache), out.logits

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, cache: HFCache | None = None
    ) -> tuple[Tensor, HFCache | None]:
        """Score the next token at every position; see `LanguageModel.forward`."""
        logits = self.hf(ids, **self._options(ids, mask, cache)).logits
        return self._read(logits, ids, cache), cache

    def _options(
        self, ids: Tensor, mask: Tensor | None, cache: HFCache | None
    ) -> dict[str, Any]:
        """What the library's models want to know about padding and the past."""
        length = ids.shape[1]
        past = cache.length if cache is not None else 0
        self.check_length(past + length)
        options = {"use_cache": cache is not None}
        if cache is not None:
            if self.hf.training and self.hf.is_gradient_checkpointing:
                raise ValueError(
                    "with gradient checkpointing the model keeps no cache while it "
                    "trains: call gradient_checkpointing_disable(), or eval()"
                )
            options["past_key_values"] = cache.past
            more = past + length - cache.mask.shape[1]
            if more > 0:  # longer than was expected
                cache.mask = F.pad(cache.mask, (0, more))
            cache.mask[:, past : past + length] = True if mask is None else mask.bool()
            mask = cache.mask[:, : past + length]
        if mask is not None and not bool(mask.all()):
            options["attention_mask"] = mask.long()
            if self._takes_positions:
                # A row counts from its first token, wherever its padding ends.
                positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
                options["position_ids"] = positions[:, past:]
        return options

    @staticmethod
    def _read(result: Tensor, ids: Tensor, cache: HFCache | None) -> Tensor:
        if cache is not None:
            cache.length += ids.shape[1]
        return result


def from_hf(model: "PreTrainedModel") -> HFModel:
    """A Hugging Face causal language model for sampling, scoring and training.

    Raises ValueError for a model that does not continue texts.
    """
    return HFModel(model)
