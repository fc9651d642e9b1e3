"""A judge that learns: an encoder with a head that says where a text went wrong."""

import os
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokrl.masking import masked_mean, pad
from tokrl.models.value import ValueHead
from tokrl.rewards.examples import special_ends
from tokrl.rewards.pieces import text_so_far, token_bytes
from tokrl.runs import atomic_path
from tokrl.tokenizers import Tokenizer

if TYPE_CHECKING:  # transformers loads slowly: only those who bring an encoder need it
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class RewardModel(nn.Module):
    """How likely it is, at each token, that the text up to it is wrong already.

    A linear head on the hidden states of any Hugging Face encoder. BERT looks both
    ways, and its score of a token would change with later tokens; the reward of a
    token must not, because reward-to-go credits a token with no reward before it, and
    what it did to one would be missing from the gradient. So a mask on the attention
    makes the encoder read from left to right, which it learns together with the head.

    encoder    a model whose output has `last_hidden_state`; it is put into evaluation
               mode, as dropout would make a reward random
    tokenizer  the encoder's own; `[CLS]` or `<bos>` begins a text, `[SEP]` or `<eos>`
               ends it
    Before it has learned, every probability is 1/2. It learns by
    `tokrl.training.fit(model, error_examples(...), config, loss=error_loss)`.
    Raises ValueError for an encoder that looks ahead in spite of the mask, or a
    tokenizer without such special tokens.
    """

    def __init__(
        self, encoder: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast"
    ):
        super().__init__()
        self.encoder, self.tokenizer = encoder.eval(), tokenizer
        like = next(encoder.parameters())
        self.head = ValueHead(encoder.config.hidden_size).to(like.device, like.dtype)
        self.first_id, self.last_id = special_ends(tokenizer)
        self._check_causal()

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (B, T) of "wrong by now".

        ids  (B, T), padded on the right: what hides later tokens hides padding too
        Raises ValueError for a text that is too long for the encoder.
        """
        return self.head(self._states(ids))

    def _states(self, ids: Tensor) -> Tensor:
        size, like = ids.shape[1], self.head.linear.weight
        longest = getattr(self.encoder.config, "max_position_embeddings", size)
        if size > longest:
            raise ValueError(
                f"a text of {size} tokens; the encoder reads at most {longest}"
            )
        mask = like.new_full((size, size), torch.finfo(like.dtype).min).triu(1)
        mask = mask.expand(len(ids), 1, size, size)  # added to the attention's scores
        ids = ids.to(like.device)
        return self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state

    @torch.no_grad()
    def _check_causal(self) -> None:
        """ValueError if the state of a token changes with the token after it."""
        first = self.first_id
        rows = [[first, first, first], [first, first, int(first == 0)]]
        states = self._states(torch.tensor(rows))[:, :2]
        if not torch.allclose(states[0], states[1], rtol=0, atol=1e-4):
            raise ValueError(
                f"{type(self.encoder).__name__} looks ahead in spite of the mask that "
                "hides later tokens: take an encoder whose attention adds a 4-D mask"
            )

    def save(self, folder: str | os.PathLike) -> None:
        """Write encoder and tokenizer in Hugging Face's format, and the head."""
        self.encoder.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        with atomic_path(Path(folder) / "head.safetensors") as temporary:
            save_file(self.head.state_dict(), temporary)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "RewardModel":
        """Read what `save` wrote, in the type it was written in.

        Raises FileNotFoundError if there is no head in the folder.
        """
        from transformers import AutoModel, AutoTokenizer

        path = Path(folder) / "head.safetensors"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there: `RewardModel.save` makes it")
        head = load_file(path)
        encoder = AutoModel.from_pretrained(folder, dtype=head["linear.weight"].dtype)
        model = cls(encoder, AutoTokenizer.from_pretrained(folder))
        model.head.load_state_dict(head)
        return model


def error_loss(model: RewardModel, examples: Sequence[Sequence[int]]) -> Tensor:
    """Mean binary cross-entropy, nats per token, of "wrong by now".

    examples  as `error_examples` makes them
    """
    ids, mask = pad([example[:-1] for example in examples], side="right")
    right = torch.tensor([example[-1] for example in examples])
    logits = model(ids)
    wrong = torch.arange(ids.shape[1]) >= right[:, None]
    losses = F.binary_cross_entropy_with_logits(
        logits, wrong.to(logits), reduction="none"
    )
    return masked_mean(losses, mask.to(logits.device))


class LearnedReward:
    """Token reward: what a token adds to the probability that the text is right.

    r_t = p_{t-1} - p_t, with p_t the model's probability that the text up to token t,
    prompt included, is wrong. The sum is p_0 - p_T: where the model is sure and right
    it is `ValidityReward`, -1 on the token that spoils the text; but no None follows,
    and a later token may win back what an earlier one lost.

    The model splits a text in its own way, and may read on to the end of a word that
    the policy has only begun. So it is shown each beginning of the text as a text of
    its own; those that are split as the whole text is share one row with it, which
    are all that end between words: characters cost far more rows than words.

    model      a RewardModel
    tokenizer  the policy's
    """

    __name__ = "learned"

    def __init__(self, model: RewardModel, tokenizer: Tokenizer, batch_size: int = 256):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size

    def beginnings(self, prompt: str, ids: Sequence[int]) -> list[tuple[str, bool]]:
        """The text before and after each token, T + 1 of them; and has it ended?"""
        before = self.tokenizer.encode(prompt)
        pieces = token_bytes(self.tokenizer, [*before, *ids])
        texts = list(accumulate(pieces, initial=b""))[len(before) :]
        ended = accumulate((i == self.tokenizer.eos_id for i in ids), initial=False)
        return [
            (text_so_far(text), bool(over))
            for text, over in zip(texts, ended, strict=True)
        ]

    @torch.no_grad()
    def wrong(
        self, prompts: Sequence[str], completion_ids: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Probabilities p_0 .. p_T that the text is wrong, for each completion."""
        model = self.model
        asked = [self.beginnings(*pair)
                 for pair in zip(prompts, completion_ids, strict=True)]  # fmt: skip
        texts = sorted({text for beginnings in asked for text, _ in beginnings})
        split = model.tokenizer(texts, add_special_tokens=False)["input_ids"]
        ids_of = dict(zip(texts, split, strict=True))
        found, rows = [], {}  # where each answer is; rows in the order of asking
        for beginnings in asked:
            places, whole = [], ()
            for text, ended in reversed(beginnings):
                end = [model.last_id] if ended else []
                row = (model.first_id, *ids_of[text], *end)
                if whole[: len(row)] != row:
                    whole = row
                places.append((rows.setdefault(whole, len(rows)), len(row) - 1))
            found.append(places[::-1])
        scores = self._scores(list(rows))
        return [[scores[row][at] for row, at in places] for places in found]

    def _scores(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """The model's probabilities for rows of ids, in batches of like length."""
        scores: list[list[float]] = [[] for _ in rows]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            ids, _ = pad([rows[i] for i in part], side="right")
            for i, row in zip(part, self.model(ids).sigmoid().tolist(), strict=True):
                scores[i] = row
        return scores

    def __call__(self, prompts, completions, completion_ids, **columns):
        return [
            [before - after for before, after in pairwise(row)]
            for row in self.wrong(prompts, completion_ids)
        ]
