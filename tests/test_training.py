"""Imitation reaches what counting says it must; the helpers of a run keep records."""

import itertools
import json
import math

import pytest
import torch

from tokrl import models
from tokrl.runs import History, atomic_path, reproducible, write_json
from tokrl.training import FitConfig, cross_entropy, evaluate, fit
from tokrl.training.gradient import clipped_gradient
from tokrl.training.optimizers import make_optimizer


@pytest.fixture(autouse=True)
def float64():
    yield reproducible(0)
    torch.set_default_dtype(torch.float32)


def coin_texts(count, generator):
    """<bos>, then a fair coin of tokens 4 and 5 six times, then <eos>."""
    coins = torch.randint(4, 6, (count, 6), generator=generator).tolist()
    return [[1, *row, 2] for row in coins]


def new_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=6, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    )


def small_model(generator):
    shape = {"width": 16, "layers": 1, "heads": 2, "max_length": 16}
    return models.build("transformer", 6, generator, **shape)


def test_fit_reaches_the_entropy_of_fair_coins(float64):
    """The floor is known: 6 coins are 6 ln 2 nats on 7 predicted tokens."""
    texts = coin_texts(512, float64)
    model = small_model(float64)
    config = FitConfig(steps=150, batch_size=32, eval_every=50)
    history = fit(model, texts, config, coin_texts(256, float64), float64)
    floor = 6 * math.log(2) / 7
    assert history["held_out"][0] > history.last("held_out")
    assert floor * 0.999 < history.last("held_out") < floor * 1.02
    assert history.steps("held_out") == [50, 100, 150]
    assert history.last("tokens") == 150 * 32 * 7


def test_cross_entropy_by_hand(float64):
    model = small_model(float64)
    texts = [[1, 4, 5, 2], [1, 2]]
    total = 0.0
    for text in texts:
        logprobs = model(torch.tensor([text[:-1]]))[0][0].log_softmax(-1)
        total -= sum(float(logprobs[i, t].detach()) for i, t in enumerate(text[1:]))
    assert float(cross_entropy(model, texts).detach()) == pytest.approx(total / 4)
    assert evaluate(model, texts, batch_size=1) == pytest.approx(total / 4)


def test_texts_of_like_length_are_read_together():
    """The loss and its gradient are those of one pass over all, for less padding."""
    draws = torch.Generator().manual_seed(0)
    texts = [torch.randint(3, 11, (n,), generator=draws).tolist()
             for n in (4, 90, 30, 31, 5, 88, 6, 29)]  # fmt: skip
    model = models.build("transformer", 11, draws, width=16, layers=1).double()
    found, read = [], []
    model.register_forward_pre_hook(lambda _, given: read.append(given[0].shape))
    for together in (True, False):
        model.reads_at_once = together
        model.zero_grad()
        loss = cross_entropy(model, texts)
        loss.backward()
        found.append((loss.detach(), model.blocks[0].qkv.weight.grad.clone()))
    for parts, whole in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-14)
    assert read == [(3, 89), (5, 29), (8, 89)]


def test_a_seed_decides_the_run():
    losses = []
    for seed in (1, 1, 2):
        generator = torch.Generator().manual_seed(seed)
        model = small_model(generator)
        config = FitConfig(steps=5, batch_size=4)
        losses.append(fit(model, coin_texts(16, generator), config, None, generator))
    assert losses[0]["loss"] == losses[1]["loss"] != losses[2]["loss"]


def test_the_learning_rate_rises_then_falls():
    config = FitConfig(steps=100, learning_rate=1.0, warmup=0.1)
    rates = [config.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert max(rates) == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_a_loss_that_is_not_finite_stops_the_run(float64):
    model = small_model(float64)
    with torch.no_grad():
        model.norm.bias[0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"step 1.*norm\.bias"):
        fit(model, [[1, 4, 2]], FitConfig(steps=2, batch_size=1))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "ids holds no texts"),
        ([[1, 4, 2], [1]], r"ids\[1\] has 1 tokens"),
        ([[1, 4, 2], [1, 5, 6, 2]], r"ids\[1\]\[2\] is the id 6.*at most 5"),
        ([[1, -3, 2]], r"ids\[0\]\[1\] is the id -3"),
        ([[1, 4, 2], [1] * 18], r"ids\[1\] has 18 tokens.*at most 16"),
        (["the cat"], r"ids\[0\] is not a list of ids"),
        ([[1.0, 2.0]], r"ids\[0\] is not a list of ids"),
    ],
)
def test_a_corpus_that_teaches_nothing_is_refused(float64, texts, message):
    with pytest.raises(ValueError, match=message):
        fit(small_model(float64), texts)
    if texts:
        with pytest.raises(ValueError, match=message.replace("ids", "held_out", 1)):
            fit(small_model(float64), [[1, 4, 2]], held_out=texts)


def test_the_longest_text_a_model_can_learn_from(float64):
    history = fit(small_model(float64), [[1] * 17], FitConfig(steps=1))
    assert history.last("tokens") == 32 * 16


def test_a_clipped_gradient_by_hand(float64):
    model = torch.nn.Linear(2, 1)
    for limit, scale in ((10.0, 1.0), (1.0, 0.2)):
        parts = (part() for part in (lambda: 3 * model.weight[0, 0],
                                     lambda: -4 * model.bias[0]))  # fmt: skip
        expected = 3 * model.weight[0, 0] - 4 * model.bias[0]
        total, norm = clipped_gradient(parts, model, limit, 1)
        assert total == pytest.approx(float(expected.detach()))
        assert norm == pytest.approx(5)
        assert model.weight.grad[0].tolist() == pytest.approx([3 * scale, 0])
        assert model.bias.grad.tolist() == pytest.approx([-4 * scale])


def test_label_smoothing_by_hand(float64):
    """A share of the target goes to all tokens alike, the right one too."""
    model = small_model(float64)
    text = [1, 4, 5, 2]
    logprobs = model(torch.tensor([text[:-1]]))[0][0].log_softmax(-1)
    targets = torch.full((3, 6), 0.3 / 6)
    targets[range(3), text[1:]] += 0.7
    expected = -(targets * logprobs).sum(-1).mean()
    torch.testing.assert_close(cross_entropy(model, [text], 0.3), expected)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch_size", 1.5),
        ("learning_rate", -1.0),
        ("warmup", 1.0),
        ("label_smoothing", -0.1),
        ("checkpoint_every", -1),
        ("weight_decay", -0.1),
        ("learning_rate", "3e-4"),
        ("warmup", None),
        ("eval_every", 2.5),
    ],
)
def test_a_wrong_configuration_names_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        FitConfig(**{field: value})


def test_history_keeps_columns_and_writes_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    history = History(path)
    history.add(1, loss=torch.tensor(2.0))
    history.add(2, loss=1.0, held_out=1.5)
    assert history["loss"] == [2.0, 1.0]
    assert history.steps("held_out") == [2]
    assert history.last("held_out") == 1.5
    assert [json.loads(line) for line in path.read_text().splitlines()] == history.rows
    with pytest.raises(KeyError, match="held_out, loss"):
        history["reward"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def fail_halfway():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_halfway()
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_batches_of_a_bucket_have_texts_of_like_length():
    """Every text once in a pass; little padding; what is learnt from is the same."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(2, 40, (64,), generator=generator).tolist()
    texts = [[1] + [4 + i % 2] * (size - 2) + [2] for i, size in enumerate(sizes)]
    seen = []

    def watch(model, batch):
        seen.append([len(text) for text in batch])
        return cross_entropy(model, batch)

    def padding(bucket):
        seen.clear()
        config = FitConfig(steps=8, batch_size=8, bucket=bucket, eval_every=0)
        model = models.build("gru", 6, torch.Generator().manual_seed(1), width=4)
        fit(model, texts, config, None, torch.Generator().manual_seed(2), loss=watch)
        assert sorted(n for batch in seen for n in batch) == sorted(map(len, texts))
        return sum(max(batch) * len(batch) - sum(batch) for batch in seen)

    assert padding(8) < 0.2 * padding(1)
    padding(8)
    order = [max(batch) for batch in seen]
    assert order != sorted(order), "short texts come first"
    padding(8)
    assert order == [max(batch) for batch in seen], "a seed decides the order"


def test_another_loss_is_what_is_fitted_and_evaluated(float64):
    """Three times the loss: the gradient is clipped, so the run is the same."""
    texts = coin_texts(32, float64)
    runs = []
    for weight in (1, 3):
        model = small_model(torch.Generator().manual_seed(3))
        config = FitConfig(steps=6, batch_size=8, eval_every=6, clip_grad=1e-3)
        runs.append(
            fit(
                model, texts, config, texts, torch.Generator().manual_seed(4),
                loss=lambda m, b, weight=weight: weight * cross_entropy(m, b),
            )
        )  # fmt: skip
    assert [3 * x for x in runs[0]["loss"]] == pytest.approx(runs[1]["loss"])
    assert 3 * runs[0].last("held_out") == pytest.approx(runs[1].last("held_out"))


def test_muon_has_the_matrices_inside_and_steps_of_one_size():
    """Its first step is orthogonal up to scale: all singular values are alike."""
    torch.set_default_dtype(torch.float32)
    model = small_model(torch.Generator().manual_seed(5))
    optimizer = make_optimizer("muon", model, 1e-2, 0.0)
    muon, adamw = ([p for g in part.param_groups for p in g["params"]]
                   for part in optimizer.parts)  # fmt: skip
    names = {id(p): name for name, p in model.named_parameters()}
    inside = {names[id(p)] for p in muon}
    assert inside == {
        f"blocks.0.{part}.weight" for part in ("qkv", "out", "up", "down")
    }
    assert len(muon) + len(adamw) == len(names)
    before = model.blocks[0].up.weight.detach().clone()
    cross_entropy(model, [[1, 4, 5, 4, 4, 2]] * 4).backward()
    gradient = model.blocks[0].up.weight.grad.clone()
    optimizer.step()
    step = before - model.blocks[0].up.weight.detach()
    assert (step * gradient).sum() > 0, "downhill"
    sizes = torch.linalg.svdvals(step)[: torch.linalg.matrix_rank(gradient)]
    assert sizes.max() < 2 * sizes.min()
    with pytest.raises(ValueError, match="sgd"):
        FitConfig(optimizer="sgd")


def test_muon_leaves_the_embeddings_of_other_libraries_alone():
    model = models.from_hf(new_gpt2())
    muon, adamw = make_optimizer("muon", model, 1e-2, 0.0).parts
    inside = {id(p) for group in muon.param_groups for p in group["params"]}
    embeddings = [
        m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)
    ]
    assert len(embeddings) == 2
    assert not inside & {id(weight) for weight in embeddings}


def test_nothing_to_measure_is_said(float64):
    model = small_model(float64)
    with pytest.raises(ValueError, match="no texts"):
        evaluate(model, [])
    for texts in ([[1]], [[], [1, 2]]):
        with pytest.raises(ValueError, match="at least one that goes on"):
            cross_entropy(model, texts)


def test_a_run_with_muon_goes_on_bit_for_bit(tmp_path):
    def run(folder, steps):
        generator = torch.Generator().manual_seed(6)
        model = small_model(generator)
        config = FitConfig(steps=8, batch_size=4, optimizer="muon", checkpoint_every=1)
        texts = coin_texts(32, generator)
        done = []

        def loss(model, batch):
            if len(done) == steps:
                raise KeyboardInterrupt
            done.append(1)
            return cross_entropy(model, batch)

        try:
            fit(model, texts, config, None, generator, folder, resume=True, loss=loss)
        except KeyboardInterrupt:
            return None
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    whole = run(tmp_path / "whole", 8)
    assert run(tmp_path / "parts", 3) is None
    assert torch.equal(run(tmp_path / "parts", 8), whole)
