"""Sampling draws from the model's distribution; scoring says how likely its draws are.

What is done fast is done here again, slowly: a row at a time, without a cache.
"""

import math

import pytest
import torch

from tokrl import models, scoring
from tokrl.masking import pad
from tokrl.sampling import beam_search, generate, sample_next_token
from tokrl.scoring import (
    completion_logits,
    entropy,
    token_kl,
    token_logprobs,
    token_logprobs_and_entropy,
)


@pytest.fixture
def model():
    generator = torch.Generator().manual_seed(3)
    shape = {"width": 16, "layers": 2, "heads": 2, "max_length": 40}
    return models.build("transformer", 9, generator, **shape).double()


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def prompts():
    return pad([[1], [1, 4, 5], [1, 7], [1, 4, 5, 6, 8]] * 4)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
def test_logprobs_equal_those_of_scoring(model, temperature):
    ids, mask = prompts()
    out, out_mask, logprobs = generate(
        model, ids, mask, 12, temperature, eos_id=2, generator=seeded()
    )
    scored = token_logprobs(model, ids, mask, out, out_mask, temperature)
    torch.testing.assert_close(logprobs.double(), scored, rtol=0, atol=1e-6)
    torch.set_default_dtype(torch.float64)
    try:
        _, _, logprobs = generate(
            model, ids, mask, 12, temperature, eos_id=2, generator=seeded()
        )
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(logprobs, scored, rtol=0, atol=1e-12)


def test_the_end_token_is_kept_and_nothing_after_it(model):
    ids, mask = prompts()
    out, out_mask, logprobs = generate(
        model, ids, mask, 20, eos_id=2, generator=seeded()
    )
    lengths = out_mask.sum(-1)
    assert 1 <= lengths.min() < lengths.max() == out.shape[1]
    for row, kept, logprob in zip(out, out_mask, logprobs, strict=True):
        size = int(kept.sum())
        assert kept[:size].all()
        assert (row[: size - 1] != 2).all()
        assert row[size - 1] == 2 or size == 20
        assert (row[size:] == 0).all()
        assert (logprob[size:] == 0).all()


def test_without_an_end_token_every_row_runs_to_the_limit(model):
    ids, mask = prompts()
    out, out_mask, _ = generate(model, ids, mask, 6, generator=seeded())
    assert out.shape == (16, 6)
    assert out_mask.all()


def test_a_seed_decides_the_tokens(model):
    ids, mask = prompts()
    first, again, other = (
        generate(model, ids, mask, 8, generator=seeded(seed))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_draws_follow_the_distribution():
    logits = torch.tensor([[0.5, -1.0, 2.0, 0.0]]).expand(200_000, -1)
    uniform = torch.rand(200_000, generator=seeded(), dtype=torch.float64)
    for temperature in (1.0, 2.0):
        ids, logprobs = sample_next_token(logits, uniform, temperature)
        expected = (logits[0] / temperature).softmax(-1)
        seen = torch.bincount(ids, minlength=4) / len(ids)
        torch.testing.assert_close(seen, expected, rtol=0, atol=4e-3)
        torch.testing.assert_close(logprobs, expected.log()[ids])


def test_the_inverse_cdf_at_its_edges():
    logits = torch.tensor([[0.0, -torch.inf, 0.0]]).expand(3, -1)
    uniform = torch.tensor([0.0, 0.5, 1 - 1e-16], dtype=torch.float64)
    ids, _ = sample_next_token(logits, uniform)
    assert ids.tolist() == [0, 2, 2], "a token of probability 0 is never drawn"


def test_top_k_and_top_p_keep_the_likeliest():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(20_000, -1)
    uniform = torch.rand(20_000, generator=seeded(), dtype=torch.float64)
    for options, kept in [
        ({"top_k": 1}, 1), ({"top_k": 3}, 3), ({"top_k": 9}, 4),
        ({"top_p": 0.05}, 1), ({"top_p": 0.65}, 2), ({"top_p": 0.95}, 4),
    ]:  # fmt: skip
        ids, logprobs = sample_next_token(logits, uniform, **options)
        assert set(ids.tolist()) == set(range(kept)), options
        torch.testing.assert_close(logprobs, logits[0][ids])


def slowly(model, ids, mask, max_new_tokens, temperature=1.0, top_k=0, top_p=1.0):
    """What `generate` gives from `seeded()` if 2 ends a row: row by row, no cache."""
    generator, rows = (
        seeded(),
        [row[m.bool()] for row, m in zip(ids, mask, strict=True)],
    )
    draws = [
        torch.rand(len(rows), generator=generator, dtype=torch.float64)
        for _ in range(max_new_tokens)
    ]
    for i, row in enumerate(rows):
        new, logprobs = [], []
        while len(new) < max_new_tokens and 2 not in new:
            given = torch.cat([row, torch.tensor(new, dtype=torch.int64)])
            with torch.no_grad():
                logits = model(given[None])[0][:, -1]
            token, logprob = sample_next_token(
                logits, draws[len(new)][i : i + 1], temperature, top_k, top_p
            )
            new.append(int(token))
            logprobs.append(float(logprob))
        yield new, logprobs


@pytest.mark.parametrize("kind", ["transformer", "gru", "hf"])
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.6}, {"temperature": 1.5, "top_k": 5}, {"top_p": 0.7}],
)
def test_generate_does_what_one_row_at_a_time_does(model, kind, options, float64):
    """Groups, padding and dropped rows: the same tokens, and the same log-probs."""
    if kind == "gru":
        model = models.build("gru", 9, seeded(3), width=16, layers=2)
    elif kind == "hf":
        model = models.from_hf(models.to_gpt2(model))
    ids, mask = pad([row for row in ([1], [1, 4, 5], [1, 7, 3]) for _ in range(9)])
    out, out_mask, logprobs = generate(
        model, ids, mask, 20, eos_id=2, generator=seeded(), **options
    )
    expected = list(slowly(model, ids, mask, 20, **options))
    lengths = out_mask.sum(-1).tolist()
    assert lengths == [len(new) for new, _ in expected]
    assert sorted(lengths)[9] < max(lengths) - 3, "most rows end before the last"
    for i, (new, given) in enumerate(expected):
        assert out[i, : len(new)].tolist() == new
        torch.testing.assert_close(
            logprobs[i, : len(new)], torch.tensor(given), rtol=0, atol=1e-10
        )


class Spy(torch.nn.Module):
    """A model that notes the shapes of what it is given to read."""

    def __init__(self, model):
        super().__init__()
        self.model, self.shapes = model, []
        self.new_cache = model.new_cache

    def forward(self, ids, mask=None, cache=None):
        self.shapes.append(tuple(ids.shape))
        return self.model(ids, mask, cache)


def test_a_prompt_is_read_once_and_ended_rows_no_longer(model):
    ids, mask = pad([row for row in ([1], [1, 4, 5]) for _ in range(32)])
    spy = Spy(model)
    out, out_mask, _ = generate(spy, ids, mask, 25, eos_id=2, generator=seeded())
    assert spy.shapes[0] == (2, 3)
    assert len(spy.shapes) == out.shape[1]
    read = [rows for rows, _ in spy.shapes[1:]]
    going = [int(out_mask[:, t].sum()) for t in range(1, out.shape[1])]
    for rows, needed in zip(read, going, strict=True):
        assert rows % 8 == 0
        assert rows >= needed
        assert rows < needed * 4 / 3 + 8
    assert read[0] > read[-1]


def test_generation_stops_when_all_rows_have_ended():
    ids, mask = prompts()
    spy = Spy(models.build("gru", 9, seeded(3), width=16, layers=1))
    out, out_mask, _ = generate(spy, ids, mask, 2000, eos_id=2, generator=seeded())
    assert len(spy.shapes) == out.shape[1] < 400
    assert (out[torch.arange(16), out_mask.sum(-1) - 1] == 2).all()


# Beam search


def every_completion(model, prompt, limit, eos_id=None):
    """{completion: total log-prob} of all there are, by passes over whole texts."""
    found, going = {}, {(): 0.0}
    for size in range(1, limit + 1):
        ids = torch.tensor([[*prompt, *new] for new in going])
        with torch.no_grad():
            logprobs = model(ids)[0][:, -1].log_softmax(-1).tolist()
        longer = {
            (*new, i): total + p
            for (new, total), row in zip(going.items(), logprobs, strict=True)
            for i, p in enumerate(row)
        }
        done = {new for new in longer if size == limit or new[-1] == eos_id}
        found.update((new, longer[new]) for new in done)
        going = {new: total for new, total in longer.items() if new not in done}
    return found


BEAM_PROMPTS = [[1], [1, 4, 5], [1, 3], [1, 3, 3, 0, 2], [1, 2], [1, 5, 2], [2, 2, 4]]


@pytest.fixture(params=["transformer", "gru"])
def small(request):
    """A model of 6 tokens whose likeliest token is not always the best beginning."""
    model = models.build(request.param, 6, seeded(6), width=8, layers=1).double()
    for parameter in model.parameters():
        parameter.data *= 2
    return model


@pytest.mark.parametrize("eos_id", [None, 2])
def test_a_wide_beam_finds_the_best_of_all_completions(small, eos_id):
    ids, mask = pad(BEAM_PROMPTS)
    out, out_mask, logprobs = beam_search(
        small, ids, mask, 4, width=6**3, eos_id=eos_id, pad_id=3
    )
    sizes = set()
    for i, prompt in enumerate(BEAM_PROMPTS):
        every = every_completion(small, prompt, 4, eos_id)
        assert sum(map(math.exp, every.values())) == pytest.approx(1)
        size = int(out_mask[i].sum())
        best = tuple(out[i, :size].tolist())
        assert best == max(every, key=every.get)
        assert float(logprobs[i].sum()) == pytest.approx(every[best], abs=1e-9)
        assert out_mask[i, :size].all()
        assert (out[i, size:] == 3).all()
        assert (logprobs[i, size:] == 0).all()
        sizes.add(size)
    assert sizes == {4} if eos_id is None else len(sizes) > 1


def test_a_beam_of_one_is_greedy_and_a_wider_one_finds_better(small):
    ids, mask = pad([[1, a, b] for a in range(6) for b in range(6)])
    greedy = generate(small, ids, mask, 8, top_k=1, eos_id=2, generator=seeded())
    narrow = beam_search(small, ids, mask, 8, width=1, eos_id=2)
    assert torch.equal(narrow[0], greedy[0])
    assert torch.equal(narrow[1], greedy[1])
    totals = [beam_search(small, ids, mask, 8, w, eos_id=2)[2].sum(-1) for w in (1, 4)]
    assert (totals[1] > totals[0] + 1e-9).sum() > 3
    assert totals[1].mean() > totals[0].mean()


def test_beam_logprobs_are_those_of_scoring_and_rows_do_not_mix(small):
    ids, mask = pad(BEAM_PROMPTS)
    found = beam_search(small, ids, mask, 7, width=3, eos_id=2)
    scored = token_logprobs(small, ids, mask, *found[:2])
    torch.testing.assert_close(found[2], scored, rtol=0, atol=1e-9)
    for i, prompt in enumerate(BEAM_PROMPTS):
        alone = beam_search(small, *pad([prompt]), 7, width=3, eos_id=2)
        size = int(found[1][i].sum())
        assert found[0][i, :size].tolist() == alone[0][0].tolist()


def test_beam_search_names_what_is_wrong(model):
    for wrong in ({"width": 0}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}=0"):
            beam_search(model, *prompts(), **{"max_new_tokens": 3, "width": 2, **wrong})


# Scoring


def experience(model, generator):
    """Prompts of some groups, not side by side, and completions of all lengths."""
    prompt = [[1], [1, 4, 5], [1, 7], [1, 4, 5, 6, 8], [1, 4]]
    ids, mask = pad([prompt[i % 5] for i in range(21)])
    out = torch.randint(9, (21, 19), generator=generator)
    lengths = torch.randint(0, 20, (21,), generator=generator)
    lengths[:3] = torch.tensor([0, 1, 19])
    out_mask = (torch.arange(19) < lengths[:, None]).long()
    out_mask[2, 7] = 0  # a token that does not count, but was read by those after it
    return ids, mask, out, out_mask


def by_one_pass_for_each_row(model, ids, mask, out, out_mask, temperature):
    """Log-probs and entropies, from whole texts without padding."""
    for row, real, new, counted in zip(ids, mask, out, out_mask, strict=True):
        prompt = row[real.bool()]
        logits = model(torch.cat([prompt, new])[None])[0][0, len(prompt) - 1 : -1]
        probs = (logits / temperature).softmax(-1)
        chosen = probs[torch.arange(len(new)), new].log()
        yield chosen * counted, -(probs * probs.log()).sum(-1) * counted


@pytest.mark.parametrize("kind", ["transformer", "lstm", "hf"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scoring_is_one_pass_for_each_row(model, kind, temperature):
    """Log-probs, entropies, and the gradient of both."""
    if kind == "lstm":
        model = models.build("lstm", 9, seeded(3), width=16, layers=2).double()
    elif kind == "hf":
        model = models.from_hf(models.to_gpt2(model))
    given = experience(model, seeded(1))
    weights = torch.randn(2, 21, 19, generator=seeded(2)).double()
    ways = [
        token_logprobs_and_entropy(model, *given, temperature, entropy_grad=True),
        [
            torch.stack(rows)
            for rows in zip(
                *by_one_pass_for_each_row(model, *given, temperature), strict=True
            )
        ],
    ]
    gradients = []
    for found in ways:
        model.zero_grad()
        (torch.stack(list(found)) * weights).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for fast, slow in zip(*ways, strict=True):
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)
    assert ways[0][0].abs().sum() > 100
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-9)
    logprobs = token_logprobs(model, *given, temperature)
    assert torch.equal(logprobs, ways[0][0])


@pytest.mark.parametrize("room", [1, 30, 80])
def test_side_by_side_or_one_after_the_other_is_the_same(model, monkeypatch, room):
    """Log-probs, entropies, values and gradients, whichever way they are read."""
    critic = models.with_value_head(model)
    critic.value_head.linear.weight.data.normal_(generator=seeded(4))
    given = [t.repeat(2, 1) for t in experience(model, seeded(1))]
    weights = torch.randn(2, 42, 19, generator=seeded(2)).double()
    monkeypatch.setattr(scoring, "PACK", room)
    packed, read = [], type(model).hidden_packed
    monkeypatch.setattr(
        type(model), "hidden_packed", lambda *args: packed.append(1) or read(*args)
    )
    ways = []
    for price in (10**6, -(10**6)):  # of a pass: dear, then a gift
        monkeypatch.setattr(scoring, "PASS", price)
        critic.zero_grad()
        logprobs, spread = token_logprobs_and_entropy(critic, *given, 0.7)
        values = scoring.token_values(critic, *given)
        (logprobs * weights[0] + values * weights[1]).sum().backward()
        gradients = [p.grad.clone() for p in critic.parameters()]
        ways.append([logprobs, spread, values, *gradients])
        assert len(packed) == 2
    for together, apart in zip(*ways, strict=True):
        torch.testing.assert_close(together, apart, rtol=0, atol=1e-9)


def test_texts_side_by_side_do_not_see_each_other():
    """What a token sees, written out: its prompt, and its own completion so far."""
    ids, mask = pad([[7], [5, 6]])
    out = torch.tensor([[1, 2, 3], [4, 4, 0], [8, 8, 8]])
    packs = scoring.Packs(
        ids, mask, torch.tensor([1, 0, 1]), out, torch.tensor([3, 2, 2])
    )
    first = [[5, 6], [5, 6, 1], [5, 6, 1, 2], [5, 6, 8]]  # before 1, 2, 3, and 8 twice
    assert packs.ids[:, :5].tolist() == [[5, 6, 1, 2, 8], [7, 4, 0, 0, 0]]
    assert packs.positions[:, :5].tolist() == [[0, 1, 2, 3, 2], [0, 1, 0, 0, 0]]
    for at, sees in zip([1, 2, 3, 4], first, strict=True):
        assert packs.ids[0, packs.seen[0, at]].tolist() == sees
    states = torch.arange(packs.ids.numel()).view(*packs.ids.shape, 1)
    before, tokens = packs.before_tokens(lambda hidden: hidden[..., 0], states)
    width = packs.ids.shape[1]
    assert before.tolist() == [[1, 2, 3, width, width + 1, 1, 4]]
    assert tokens.tolist() == [[1, 2, 3, 4, 4, 8, 8]]
    assert packs.on_tokens(tokens).tolist() == [[1, 2, 3], [4, 4, 0], [8, 8, 0]]


def test_the_entropy_carries_a_gradient_only_if_asked(model):
    given = experience(model, seeded(1))
    logprobs, spread = token_logprobs_and_entropy(model, *given)
    assert logprobs.requires_grad
    assert not spread.requires_grad


def test_completion_logits_are_those_of_whole_texts(model):
    given = experience(model, seeded(1))
    logprobs = completion_logits(model, *given).log_softmax(-1)
    chosen = logprobs.gather(-1, given[2][..., None])[..., 0] * given[3]
    torch.testing.assert_close(
        chosen, token_logprobs(model, *given), rtol=0, atol=1e-10
    )


def test_scoring_reads_prompts_once_and_little_padding(model):
    given = experience(model, seeded(1))
    spy = Spy(model)
    token_logprobs(spy, *given)
    assert spy.shapes[0] == (5, 5)
    read = sum(rows * columns for rows, columns in spy.shapes[1:])
    last = given[3].double() * torch.arange(19)  # nothing is read after a last token
    needed = int(last.amax(-1).sum())
    assert needed < read < needed + 21 * 8
    assert read < 0.75 * 21 * 18


def test_scoring_leaves_the_prompts_cache_alone(model):
    """Parts of a batch go on from the same prompts: none may find another's tokens."""
    given = [t.repeat(4, 1) for t in experience(model, seeded(1))]
    logprobs = token_logprobs(model, *given)
    once = token_logprobs(model, *(t[:21] for t in given))
    torch.testing.assert_close(logprobs, once.repeat(4, 1), rtol=0, atol=1e-12)


def test_a_model_that_keeps_no_cache_says_so(model):
    hf = models.to_gpt2(model)
    wrapped = models.from_hf(hf)
    hf.gradient_checkpointing_enable()
    given = experience(wrapped, seeded(1))
    expected = token_logprobs(wrapped, *given)
    hf.train()
    with pytest.raises(ValueError, match="gradient_checkpointing_disable"):
        token_logprobs(wrapped, *given)
    hf.gradient_checkpointing_disable()
    torch.testing.assert_close(
        token_logprobs(wrapped, *given), expected, rtol=0, atol=1e-12
    )


def test_entropy_by_hand():
    logits = torch.tensor([[0.0, 0.0, -1e9], [3.0, -1e9, -1e9], [1.0, 1.0, -torch.inf]])
    logits.requires_grad_()
    found = entropy(logits)
    torch.testing.assert_close(found, torch.tensor([2.0, 1.0, 2.0]).log())
    found.sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros(3, 3))


def test_kl_by_hand():
    """Of (1/2, 1/2, 0) to (1/4, 1/4, 1/2) it is ln 2; back it is infinite."""
    p, q = torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.25, 0.25, 0.5]).log()
    both = torch.stack([p, q, p]), torch.stack([q, p, p])
    expected = torch.tensor([math.log(2), torch.inf, 0.0])
    torch.testing.assert_close(token_kl(*both), expected)
    torch.testing.assert_close(token_kl(p + 3, q - 7), expected[0])
    p.requires_grad_()
    token_kl(p, q).backward()
    torch.testing.assert_close(p.grad, torch.zeros(3))


def test_kl_is_cross_entropy_less_entropy_and_its_gradient_is_right():
    logits, other = torch.randn(2, 4, 5, 6, generator=seeded()).double()
    cross = -(logits.softmax(-1) * other.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(token_kl(logits, other), cross - entropy(logits))
    both = logits[0, :2].requires_grad_(), other[0, :2].requires_grad_()
    assert torch.autograd.gradcheck(token_kl, both)
    assert torch.autograd.gradcheck(entropy, both[0])


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": 1e-39}, "temperature"), ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"), ({"top_p": 1.5}, "top_p"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(model, options, name):
    ids, mask = prompts()
    with pytest.raises(ValueError, match=name):
        generate(model, ids, mask, 3, **options)
    with pytest.raises(ValueError, match="max_new_tokens"):
        generate(model, ids, mask, 0)


def test_what_does_not_fit_is_refused_where_it_is_given(model):
    """Else ids would be read as a mask, padding continued, and rows left out."""
    ids, mask = prompts()
    out = torch.full((16, 3), 4)
    ones = torch.ones_like(out)
    right, right_mask = pad([[1], [1, 4]], side="right")
    for wrong, message in (
        ((ids, mask[:, :1]), r"prompt_ids has shape \(16, 5\), the mask \(16, 1\)"),
        ((ids[:, :0], mask[:, :0]), r"prompt_ids has shape \(16, 0\)"),
        ((ids[:0], mask[:0]), r"prompt_ids has shape \(0, 5\)"),
        ((right, right_mask), "0 in the last column of row 0: pad prompts on the left"),
        ((ids + 5, mask), "token 13, but the model knows 9 tokens"),
    ):
        rows = out[: len(wrong[0])], ones[: len(wrong[0])]
        for read, more in (
            (generate, (3,)), (beam_search, (3, 2)), (token_logprobs, rows),
            (scoring.completion_logits, rows),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=message):
                read(model, *wrong, *more)
    for wrong, message in (
        ((out, ones[:, :1]), r"completion_ids has shape \(16, 3\), the mask \(16, 1\)"),
        ((out[:8], ones[:8]), "a prompt for each completion"),
        ((out[:, :0], ones[:, :0]), "at least one token"),
        ((out + 5, ones), "token 9, but the model knows 9 tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            token_logprobs(model, ids, mask, *wrong)
    for temperature in (0.0, -1.0):
        with pytest.raises(ValueError, match="temperature"):
            token_logprobs(model, ids, mask, out, ones, temperature)


@pytest.mark.parametrize("nothing", [math.nan, -math.inf])
def test_nothing_is_drawn_where_nothing_can_be(nothing):
    logits = torch.zeros(3, 5)
    logits[1] = nothing
    with pytest.raises(FloatingPointError, match="row 1: no token can be drawn"):
        sample_next_token(logits, torch.full((3,), 0.5))


def test_top_k_keeps_k_tokens_of_equally_likely_ones():
    uniform = torch.linspace(0, 0.999, 9)
    for k, expected in ((1, {1}), (2, {1, 3}), (3, {1, 3, 0})):
        logits = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0]).expand(9, 5)
        ids, _ = sample_next_token(logits, uniform, top_k=k)
        assert set(ids.tolist()) == expected


def test_a_tiny_top_p_keeps_the_likeliest_token():
    ids, _ = sample_next_token(torch.tensor([[0.0, 3.0, 1.0]]), torch.ones(1) * 0.9,
                               top_p=1e-46)  # fmt: skip
    assert ids.tolist() == [1]
