"""n-gram models: counts by hand, the smoothing formula twice, exact limits."""

import math
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokrl.models.ngram import SMOOTHINGS, NGram
from tokrl.tokenizers import WordTokenizer
from tokrl.world import World

BEGIN, END, A, B = range(4)
TEXTS = [[BEGIN, A, B, A, END], [BEGIN, A, A, END]]


def some_texts(seed=0, count=30, vocab_size=6):
    draw = random.Random(seed)
    return [
        [0, *(draw.choice([2, 3, 3, 4]) for _ in range(draw.randint(0, 8))), 1]
        for _ in range(count)
    ]


def brute_force(texts, order, vocab_size, token, context):
    """Witten and Bell's formula as it is printed, counting anew at every step."""
    context = [context[0]] * (order - 1 - len(context)) + list(context)

    def prob(h):
        if h is None:
            return 1 / vocab_size
        followers = []
        for text in texts:
            text = [text[0]] * (order - 1) + list(text)
            for t in range(order, len(text)):
                if text[t - len(h) : t] == h:
                    followers.append(text[t])
        lower = prob(h[1:] if h else None)
        different = len(set(followers))
        if not followers:
            return lower
        return (followers.count(token) + different * lower) / (
            len(followers) + different
        )

    return prob(context[len(context) - order + 1 :])


def test_counts_by_hand():
    model = NGram(3, 4, "none").fit(TEXTS)
    assert model.table() == {
        (BEGIN, BEGIN): {A: 2},
        (BEGIN, A): {B: 1, A: 1},
        (A, B): {A: 1},
        (B, A): {END: 1},
        (A, A): {END: 1},
    }
    assert model.reduced(2).table() == {
        (BEGIN,): {A: 2},
        (A,): {B: 1, A: 1, END: 2},
        (B,): {A: 1},
    }
    assert model.probs([BEGIN, A]) == [0, 0, 1 / 2, 1 / 2]
    assert model.reduced(2).probs([B, A]) == [0, 1 / 2, 1 / 4, 1 / 4]


def test_witten_bell_by_hand():
    # Seven tokens: A 4 times, B once, the end twice; three different ones.
    unigram = [(c + 3 / 4) / (7 + 3) for c in (0, 2, 4, 1)]
    bigram = [(c + 3 * p) / (4 + 3) for c, p in zip((0, 2, 1, 1), unigram, strict=True)]
    model = NGram(2, 4).fit(TEXTS)
    assert model.reduced(1).probs([A]) == pytest.approx(unigram)
    assert model.probs([A]) == pytest.approx(bigram)
    assert model.probs([END]) == pytest.approx(unigram)  # never seen as a context


def test_probability_of_a_text_by_hand():
    model = NGram(2, 4, "none").fit(TEXTS)
    # A first: 1; B after A: 1/4; A after B: 1; the end after A: 1/2.
    assert model.log_prob(TEXTS[0]) == pytest.approx(math.log(1 / 4 * 1 / 2))
    assert model.log_prob(TEXTS[1]) == pytest.approx(math.log(1 / 4 * 1 / 2))
    assert model.cross_entropy(TEXTS) == pytest.approx(2 * math.log(8) / 7)


def test_order_one_gives_relative_frequencies():
    texts = some_texts()
    tokens = [i for text in texts for i in text[1:]]
    model = NGram(1, 6, "none").fit(texts)
    expected = [tokens.count(i) / len(tokens) for i in range(6)]
    assert model.probs([]) == pytest.approx(expected, abs=1e-15)
    assert model.probs([0, 3, 2]) == model.probs([])


@settings(deadline=None, max_examples=60)
@given(
    order=st.integers(1, 5),
    context=st.lists(st.integers(0, 5), min_size=1, max_size=7),
    seed=st.integers(0, 5),
)
def test_smoothed_model_equals_the_formula_and_sums_to_one(order, context, seed):
    texts = some_texts(seed)
    model = NGram(order, 6).fit(texts)
    probs = model.probs(context)
    assert sum(probs) == pytest.approx(1, abs=1e-12)
    assert min(probs) > 0
    for token in range(6):
        assert model.prob(token, context) == pytest.approx(probs[token], abs=1e-15)
        expected = brute_force(texts, order, 6, token, context)
        assert probs[token] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_probabilities_of_all_texts_of_a_length_sum_to_one(smoothing):
    model = NGram(3, 4, smoothing).fit(TEXTS)
    beginnings = [[BEGIN]]
    total = 0.0
    for _ in range(6):
        beginnings = [[*b, i] for b in beginnings for i in range(4)]
        total += sum(math.exp(model.log_prob(b)) for b in beginnings if b[-1] == END)
        beginnings = [b for b in beginnings if b[-1] != END]
    total += sum(math.exp(model.log_prob(b)) for b in beginnings)
    assert total == pytest.approx(1)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_reduced_equals_a_model_fitted_at_that_order(smoothing):
    texts = some_texts()
    whole = NGram(5, 6, smoothing).fit(texts)
    for order in range(1, 6):
        alone, reduced = NGram(order, 6, smoothing).fit(texts), whole.reduced(order)
        assert reduced.table() == alone.table()
        assert reduced.cross_entropy(texts) == alone.cross_entropy(texts)


def test_plain_counts_are_the_likeliest_and_longer_contexts_fit_better():
    texts = some_texts()
    whole = NGram(6, 6).fit(texts)
    losses = [whole.reduced(n, "none").cross_entropy(texts) for n in range(1, 7)]
    assert losses == sorted(losses, reverse=True)
    for order, loss in enumerate(losses, 1):
        assert whole.reduced(order).cross_entropy(texts) > loss
        entropy = whole.reduced(order).conditional_entropy()
        assert entropy == pytest.approx(loss)


def test_weights_are_repetitions():
    texts = some_texts(count=4)
    weighted = NGram(3, 6).fit(texts, [3, 1, 2, 1])
    repeated = NGram(3, 6).fit([texts[i] for i in (0, 0, 0, 1, 2, 2, 3)])
    assert weighted.table() == repeated.table()


def test_exact_weights_give_the_worlds_conditional_entropies():
    world = World.small(1)
    stories = list(world.all_stories())
    tokenizer = WordTokenizer.train([world.vocabulary()])
    texts = [[tokenizer.bos_id, *tokenizer.to_ids(s.words())] for s in stories]
    weights = [math.exp(story.log_prob) for story in stories]
    floor = world.entropy_rate()
    longest = max(map(len, texts))
    model = NGram(longest, len(tokenizer), "none").fit(texts, weights)
    for order in (1, 2, 4):
        # H(X | context) = H(context, X) - H(context), from the windows themselves.
        whole, context = Counter(), Counter()
        for text, weight in zip(texts, weights, strict=True):
            padded = (text[0],) * (order - 1) + tuple(text)
            for t in range(order, len(padded)):
                whole[padded[t - order + 1 : t + 1]] += weight / floor.words
                context[padded[t - order + 1 : t]] += weight / floor.words
        entropies = [
            -sum(p * math.log(p) for p in masses.values())
            for masses in (whole, context)
        ]
        found = model.reduced(order).conditional_entropy()
        assert found == pytest.approx(entropies[0] - entropies[1])
        assert found > floor.per_word
    # A window as long as the longest story sees everything: the floor.
    assert model.conditional_entropy() == pytest.approx(floor.per_word)
    for story, text in list(zip(stories, texts, strict=True))[::97]:
        assert model.log_prob(text) == pytest.approx(story.log_prob)
        for t in range(1, len(text)):
            probs = model.probs(text[:t])
            exact = world.next_word_probs(story.words()[: t - 1])
            for word, p in exact.items():
                assert probs[tokenizer.vocab[word]] == pytest.approx(p)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_samples_follow_the_probabilities(smoothing):
    model = NGram(2, 4, smoothing).fit(TEXTS)
    generator = torch.Generator().manual_seed(0)
    count = 20_000
    drawn = Counter(
        model.sample([BEGIN, A], 1, generator=generator)[0] for _ in range(count)
    )
    for token, p in enumerate(model.probs([A])):
        error = math.sqrt(p * (1 - p) / count)
        assert abs(drawn[token] / count - p) <= 4 * error  # exactly 0 where p is 0


def test_plain_samples_copy_their_windows():
    texts = some_texts()
    model = NGram(3, 6, "none").fit(texts)
    windows = {tuple(t[i : i + 3]) for t in texts for i in range(len(t) - 2)}
    generator = torch.Generator().manual_seed(1)
    written = [model.sample([0], 50, eos_id=1, generator=generator) for _ in range(50)]
    for ids in written:
        assert ids.index(1) == len(ids) - 1
        text = [0, *ids]
        assert {tuple(text[i : i + 3]) for i in range(len(text) - 2)} <= windows
    again = model.sample([0], 50, 1, torch.Generator().manual_seed(1))
    assert again == written[0]


def test_sample_stops_at_the_limit():
    model = NGram(2, 4).fit(TEXTS)
    assert len(model.sample([BEGIN], 7, generator=torch.Generator())) == 7


def test_what_was_never_seen():
    plain, smooth = NGram(3, 5, "none").fit(TEXTS), NGram(3, 5).fit(TEXTS)
    assert plain.prob(4, [BEGIN, A]) == 0
    assert plain.prob(A, [4, 4]) == 0
    assert plain.log_prob([BEGIN, B]) == -math.inf
    assert plain.cross_entropy([*TEXTS, [BEGIN, B, END]]) == math.inf
    with pytest.raises(ValueError, match="never seen"):
        plain.probs([4, 4])
    assert smooth.probs([4, 4]) == smooth.reduced(1).probs([4])
    assert smooth.log_prob([BEGIN, B]) > -math.inf


def test_errors_say_what_is_wrong():
    for order in (0, -1, 2.0):
        with pytest.raises(ValueError, match="order"):
            NGram(order, 4)
    with pytest.raises(ValueError, match="vocab_size"):
        NGram(2, 0)
    with pytest.raises(ValueError, match="witten_bell"):
        NGram(2, 4, "laplace")
    model = NGram(2, 4)
    for texts in ([], [[BEGIN]], [[]]):
        with pytest.raises(ValueError, match="no token to predict"):
            model.fit(texts)
    with pytest.raises(ValueError, match="fit first"):
        model.probs([BEGIN])
    with pytest.raises(ValueError, match="id 4: the ids are 0 to 3"):
        model.fit([[BEGIN, 4]])
    for weight in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match="weight"):
            model.fit([[BEGIN, A]], [weight])
    with pytest.raises(ValueError, match="zip"):
        model.fit([[BEGIN, A]], [1, 1])
    model.fit(TEXTS)
    for call in (
        lambda: model.probs([-1]),
        lambda: model.prob(-1, [A]),
        lambda: model.log_prob([BEGIN, -1]),
        lambda: model.sample([-1], 3),
    ):
        with pytest.raises(ValueError, match="id -1"):
            call()
    with pytest.raises(ValueError, match="order=3"):
        model.reduced(3)
    with pytest.raises(ValueError, match="context is empty"):
        model.probs([])
    with pytest.raises(ValueError, match="no token to predict"):
        model.cross_entropy([[BEGIN]])
    with pytest.raises(ValueError, match="max_new_tokens"):
        model.sample([BEGIN], 0)


def test_ids_of_a_tensor_are_counted_as_those_of_lists():
    texts = [[1, 2, 3], [1, 2, 4]]
    lists, tensors = (NGram(2, 5).fit(t) for t in (texts, torch.tensor(texts)))
    assert lists.probs([2]) == tensors.probs(torch.tensor([2]))
    assert lists.log_prob([1, 2, 3]) == tensors.log_prob(torch.tensor([1, 2, 3]))
