"""The world's next-token distribution, through every tokenizer."""

import math

import pytest
import torch

from tokrl.tokenizers import (
    BPETokenizer,
    CharTokenizer,
    WordPieceTokenizer,
    WordTokenizer,
)
from tokrl.world import LANGUAGES, World

KINDS = ("character", "word", "bpe-300", "bpe-500", "bpe-2000", "wordpiece", "unknown")


@pytest.fixture(scope="module")
def world():
    return World.default()


def train(kind, stories, lang):
    texts = [story.text(lang) for story in stories]
    if kind == "character":
        return CharTokenizer.train(texts, byte_fallback=False)
    if kind == "word":
        return WordTokenizer.train(story.words(lang) for story in stories)
    if kind == "unknown":  # most words are <unk>, so that many texts share their ids
        return WordTokenizer.train([s.words(lang) for s in stories], vocab_size=12)
    if kind == "wordpiece":
        return WordPieceTokenizer.train(texts, 200)
    return BPETokenizer.train(texts, int(kind.removeprefix("bpe-")))


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS[:-1])
def test_tokens_multiply_to_the_probability_of_the_story(world, kind, lang):
    stories = world.sample_stories(1000, torch.Generator().manual_seed(0))
    tokenizer = train(kind, stories, lang)
    for story in stories[:3]:
        ids = [*tokenizer.encode(story.text(lang)), tokenizer.eos_id]
        total = 0.0
        for i, token in enumerate(ids):
            probs = world.token_probs(ids[:i], tokenizer, lang)
            assert sum(probs.values()) == pytest.approx(1.0, abs=1e-12)
            total += math.log(probs[token])
        assert total == pytest.approx(story.log_prob, abs=1e-9)
        assert world.token_probs(ids, tokenizer, lang) == {}


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_token_probs_are_what_enumeration_gives(kind, lang):
    """All stories, encoded: of those that begin alike, the share that goes on so."""
    small = World.small(1)
    stories = list(small.all_stories())
    tokenizer = train(kind, stories, lang)
    mass = {}
    for story in stories:
        ids = (*tokenizer.encode(story.text(lang)), tokenizer.eos_id)
        for i in range(len(ids)):
            after = mass.setdefault(ids[:i], {})
            after[ids[i]] = after.get(ids[i], 0.0) + math.exp(story.log_prob)
    prefixes = sorted(mass)
    for prefix in prefixes[:: max(1, len(prefixes) // 60)]:
        total = sum(mass[prefix].values())
        expected = {token: m / total for token, m in mass[prefix].items()}
        found = small.token_probs(prefix, tokenizer, lang)
        assert found == pytest.approx(expected, abs=1e-12)
        assert list(found.values()) == sorted(found.values(), reverse=True)


def test_impossible_ids_have_no_next_token(world):
    stories = world.sample_stories(200, torch.Generator().manual_seed(1))
    tokenizer = train("bpe-500", stories, "en")
    ids = tokenizer.encode(stories[0].text())
    start = world.token_probs([], tokenizer)
    assert start == world.token_probs([tokenizer.bos_id], tokenizer)
    assert world.token_probs([tokenizer.eos_id], tokenizer) == {}
    assert world.token_probs([*ids[:5], ids[4], ids[4]], tokenizer) == {}
    # The same text in bytes: no encoder writes it so.
    in_bytes = [tokenizer.vocab[letter] for letter in "Today"]
    assert tokenizer.decode(in_bytes) == "Today"
    assert world.token_probs(in_bytes, tokenizer) == {}


def test_wrong_arguments_are_named(world):
    tokenizer = train("word", world.sample_stories(5, torch.Generator()), "en")
    with pytest.raises(ValueError, match="id 999"):
        world.token_probs([999], tokenizer)
    with pytest.raises(ValueError, match="'fr'"):
        world.token_probs([], tokenizer, "fr")
