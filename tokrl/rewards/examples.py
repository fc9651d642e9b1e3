"""Texts with known mistakes, for a reward model to learn from."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from tokrl.rewards.truth import possible_bytes, whole_story
from tokrl.tokenizers import join_words
from tokrl.world import Story, World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def spoilt(
    world: World, story: Story, generator: torch.Generator, lang: str = "en"
) -> str:
    """The text of a story, in half of all cases with something wrong put in.

    A word is replaced (by another of the story, which makes false statements, or by
    any of the vocabulary, which makes bad grammar), dropped, or swapped with the
    next. Then one text in four is cut off after any character. Chance may leave it a
    possible text.
    """

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    words = story.words(lang)[:-1]
    at, change = draw(len(words) - 1), draw(8)
    if change == 0:
        words[at : at + 2] = words[at + 1], words[at]
    elif change == 1:
        del words[at]
    elif change == 2:
        words[at] = world.vocabulary(lang)[draw(len(world.vocabulary(lang)))]
    elif change == 3:
        words[at] = words[draw(len(words))]
    text = join_words(words)
    return text[: draw(len(text) + 1)] if draw(4) == 0 else text


def special_ends(tokenizer: "PreTrainedTokenizerFast") -> tuple[int, int]:
    """The ids that begin and end a text: `[CLS]` and `[SEP]`, or `<bos>` and `<eos>`.

    Raises ValueError if the tokenizer lacks one.
    """
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    first = tokenizer.bos_token_id if first is None else first
    last = tokenizer.eos_token_id if last is None else last
    if first is None or last is None:
        raise ValueError(
            f"{type(tokenizer).__name__} lacks a token that begins a text (cls or bos) "
            "or one that ends it (sep or eos): set them"
        )
    return first, last


def error_examples(
    world: World,
    texts: Sequence[str],
    tokenizer: "PreTrainedTokenizerFast",
    lang: str = "en",
) -> list[list[int]]:
    """Texts as ids, each with the place from which it is impossible in the world.

    texts      true stories, spoilt ones, what a policy wrote
    tokenizer  the encoder's own; one that gives offsets
    A token is wrong if no possible story begins with the text up to its end; the
    last one, which says that the story ends, if it does not end there.
    Returns lists: the ids with a special token at both ends, and after them one
    number, how many of these ids are right; all after them are wrong.
    """
    first, last = special_ends(tokenizer)
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_offsets_mapping=True
    )
    examples = []
    for text, ids, offsets in zip(
        texts, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        data = text.encode()
        possible = data[: possible_bytes(world, data, lang)].decode(errors="ignore")
        right = 1 + sum(end <= len(possible) for _, end in offsets)
        right += whole_story(world, data, lang)
        examples.append([first, *ids, last, right])
    return examples
