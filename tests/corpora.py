"""Texts that tests and benchmarks share: made from seeds, about 1 MB each."""

import random
from functools import cache

import torch

from tokrl.world import Story, World


@cache
def stories(lang: str, count: int = 4_000) -> tuple[str, ...]:
    """Stories of the default world: 4,000 are 1.0 MB in English, 0.9 in Chinese."""
    return tuple(story.text(lang) for story in told(count))


@cache
def told(count: int) -> tuple[Story, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(World.default().sample_stories(count, generator))


@cache
def many_words(distinct: int = 20_000, size: int = 1_000_000) -> tuple[str, ...]:
    """Texts of made-up words by Zipf's law: word k has a share of about 1/k.

    Each of the `distinct` words occurs; words of 2 to 11 letters with the letter
    frequencies of English, roughly.
    """
    draw = random.Random(0)
    letters, shares = "etaoinshrdlucmfwypvbgkjqxz", [1 / (k + 2) for k in range(26)]
    found: dict[str, None] = {}
    while len(found) < distinct:
        found["".join(draw.choices(letters, shares, k=draw.randint(2, 11)))] = None
    words = list(found)
    length = sum(map(len, words)) + len(words)
    zipf = [1 / (k + 1) for k in range(distinct)]
    while length < size:
        more = draw.choices(words[:distinct], zipf, k=1_000)
        length += sum(map(len, more)) + len(more)
        words += more
    draw.shuffle(words)
    return tuple(" ".join(words[i : i + 40]) for i in range(0, len(words), 40))
