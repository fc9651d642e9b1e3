"""One protocol: every model pads, caches, samples, scores and is judged alike."""

import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tokrl import models
from tokrl.masking import pad
from tokrl.rollout import collect
from tokrl.sampling import generate
from tokrl.scoring import token_logprobs
from tokrl.tokenizers import WordTokenizer
from tokrl.training import FitConfig, PolicyConfig, fit, train_policy

VOCAB, LONGEST = 11, 32


def make(kind):
    """A small model with random float64 weights, biases too."""
    torch.manual_seed(0)
    if kind == "hf-gpt2":
        config = GPT2Config(
            vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=LONGEST,
            bos_token_id=1, eos_token_id=2, initializer_range=0.3,
        )  # fmt: skip
        model = models.from_hf(GPT2LMHeadModel(config))
    elif kind == "hf-llama":
        config = LlamaConfig(
            vocab_size=VOCAB, hidden_size=16, intermediate_size=24,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=LONGEST, initializer_range=0.3,
        )  # fmt: skip
        model = models.from_hf(LlamaForCausalLM(config))
    else:
        longest = {"max_length": LONGEST} if kind == "transformer" else {}
        model = models.build(kind, VOCAB, width=16, layers=2, **longest)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.double()


OURS = ("transformer", "rnn", "lstm", "gru")
KINDS = (*OURS, "hf-gpt2", "hf-llama")


@pytest.fixture(params=KINDS)
def model(request):
    return make(request.param)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def draw(*shape, seed=0):
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def close(got, expected, atol=1e-10):
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


# Padding


def test_a_token_sees_what_came_before_and_not_what_follows(model):
    ids = draw(2, 10)
    logits, _ = model(ids)
    changed = ids.clone()
    changed[:, 4] = (changed[:, 4] + 1) % VOCAB
    again, _ = model(changed)
    close(again[:, :4], logits[:, :4])
    for t in range(4, 10):
        assert (again[:, t] - logits[:, t]).abs().max() > 1e-6, t


def test_left_padding_changes_nothing(model):
    rows = [draw(n, seed=n).tolist() for n in (3, 9, 1, 6)]
    ids, mask = pad(rows)
    logits, _ = model(ids, mask)
    hidden = model.hidden(ids, mask)
    assert hidden.shape == (4, 9, model.width)
    assert torch.isfinite(logits).all()
    for row, got, state in zip(rows, logits, hidden, strict=True):
        alone, _ = model(torch.tensor([row]))
        close(got[-len(row) :], alone[0])
        close(state[-len(row) :], model.hidden(torch.tensor([row]))[0])


def test_what_stands_in_the_padding_changes_nothing(model):
    ids, mask = pad([draw(n, seed=n).tolist() for n in (3, 9, 1, 6)])
    other = torch.where(mask.bool(), ids, torch.full_like(ids, 7))
    real = mask.bool()
    close(model(other, mask)[0][real], model(ids, mask)[0][real], atol=1e-12)


def test_padding_on_both_sides(model):
    """A prompt padded on the left with a completion padded on the right."""
    ids, mask = draw(3, 10), torch.ones(3, 10, dtype=torch.int64)
    mask[0, :3] = mask[0, 8:] = mask[1, 6:] = 0
    logits, _ = model(ids, mask)
    for row, kept, got in zip(ids, mask.bool(), logits, strict=True):
        alone, _ = model(row[kept][None])
        close(got[kept], alone[0])


def test_gradients_do_not_depend_on_padding(model):
    rows = [draw(n, seed=n).tolist() for n in (3, 9, 6)]
    ids, mask = pad(rows)

    def gradient(run):
        model.zero_grad()
        run().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    batch = gradient(lambda: (model(ids, mask)[0].sin().sum(-1) * mask).sum())
    alone = gradient(lambda: sum(model(torch.tensor([r]))[0].sin().sum() for r in rows))
    assert len(batch) == len(list(model.parameters()))
    for a, b in zip(batch, alone, strict=True):
        close(a, b, atol=1e-9)


# Cache


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_cached_equals_uncached(model, padded):
    ids = draw(3, 12)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :4] = mask[2, :1] = 0
    whole, _ = model(ids, mask)
    cache = model.new_cache(3, 12)
    parts, at = [], 0
    for size in (5, 1, 1, 3, 2):
        piece = mask[:, at : at + size] if at == 0 else None
        logits, cache = model(ids[:, at : at + size], piece, cache)
        parts.append(logits)
        at += size
    got = torch.cat(parts, 1)
    real = mask.bool()
    close(got[real], whole[real])


@torch.no_grad()
def test_padding_in_a_later_piece(model):
    """Rows of which one has nothing to read for now; it goes on as if nothing were."""
    ids, mask = draw(3, 8), torch.ones(3, 8, dtype=torch.int64)
    mask[0, 3:5] = mask[1, 4:5] = 0
    cache = model.new_cache(3, 8)
    parts = [model(ids[:, s], mask[:, s], cache)[0] for s in (slice(3), slice(3, 5))]
    parts.append(model(ids[:, 5:], None, cache)[0])
    got = torch.cat(parts, 1)
    for row, kept, logits in zip(ids, mask.bool(), got, strict=True):
        close(logits[kept], model(row[kept][None])[0][0])


@torch.no_grad()
def test_dropped_and_reordered_rows(model):
    ids = draw(4, 8)
    mask = torch.ones_like(ids)
    mask[0, :2] = mask[3, :4] = 0
    whole, _ = model(ids, mask)
    cache = model.new_cache(4, 8)
    model(ids[:, :5], mask[:, :5], cache)
    kept = torch.tensor([3, 0])
    cache.keep(kept)
    logits, _ = model(ids[kept, 5:6], None, cache)
    close(logits[:, 0], whole[kept, 5])
    cache.keep(torch.tensor([1]))
    logits, _ = model(ids[:1, 6:7], None, cache)
    close(logits[:, 0], whole[:1, 6])
    cache.keep(torch.tensor([], dtype=torch.int64))


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("copies", [2, 3, 8, 16])
def test_copies_of_a_row_go_on_each_in_its_own_way(model, copies, padded):
    """As completions of one prompt do; then some end, and two tokens come at once."""
    begin, own = draw(2, 4), draw(2 * copies, 7, seed=1)
    mask = torch.ones_like(begin)
    mask[1, :2] = not padded
    of = torch.arange(2).repeat_interleave(copies)
    ids = torch.cat([begin[of], own], -1)
    whole, _ = model(ids, torch.cat([mask[of], torch.ones_like(own)], -1))
    cache = model.new_cache(2, 11)
    model(begin, mask, cache)
    cache.keep(of)
    for t in range(3):
        logits, _ = model(own[:, t : t + 1], None, cache)
        close(logits[:, 0], whole[:, 4 + t])
    branch = copy.copy(cache)
    logits, _ = model(own[:, 3:5], None, branch)
    close(logits, whole[:, 7:9])
    kept = torch.tensor([copies, 0, 2 * copies - 1])
    cache.keep(kept)
    for piece in (slice(3, 4), slice(4, 6), slice(6, 7)):
        logits, _ = model(own[kept, piece], None, cache)
        close(logits, whole[kept, 4 + piece.start : 4 + piece.stop])


@torch.no_grad()
def test_a_cache_row_may_be_kept_before_anything_was_read(model):
    ids = draw(2, 5)
    cache = model.new_cache(3, 5)
    cache.keep(torch.tensor([0, 2]))
    logits, _ = model(ids, None, cache)
    close(logits, model(ids)[0])


def test_too_long_a_sequence_is_refused_with_both_lengths(model):
    if model.max_length is None:
        assert model(draw(1, 200))[0].shape == (1, 200, VOCAB)
        return
    with pytest.raises(ValueError, match=r"33 tokens.*at most 32"):
        model(draw(1, 33))
    cache = model.new_cache(1, 40)
    model(draw(1, 30), None, cache)
    with pytest.raises(ValueError, match=r"33 tokens.*at most 32"):
        model(draw(1, 3), None, cache)


# Hidden states and values


def test_the_head_reads_the_hidden_states(model):
    ids, mask = pad([draw(n, seed=n).tolist() for n in (3, 7)])
    logits, _ = model(ids, mask)
    hidden, again = model.outputs(ids, mask)
    close(again, logits, atol=1e-12)
    close(hidden, model.hidden(ids, mask), atol=1e-12)
    close(model.head(hidden), logits, atol=1e-12)
    assert logits.shape == (2, 7, model.vocab_size)


def test_values_by_hand(model):
    critic = models.with_value_head(model)
    ids, mask = pad([draw(n, seed=n).tolist() for n in (3, 7)])
    assert (critic.values(ids, mask) == 0).all(), "it starts with no claim"
    with torch.no_grad():
        critic.value_head.linear.weight.normal_()
        critic.value_head.linear.bias.fill_(0.25)
    hidden = model.hidden(ids, mask)
    expected = (hidden * critic.value_head.linear.weight[0]).sum(-1) + 0.25
    logits, values = critic.logits_and_values(ids, mask)
    assert values.shape == (2, 7)
    close(values, expected, atol=1e-12)
    close(critic.values(ids, mask), expected, atol=1e-12)
    close(logits, model(ids, mask)[0], atol=1e-12)
    close(critic(ids, mask)[0], logits, atol=1e-12)


def test_values_with_a_cache_and_a_gradient_into_the_body(model):
    critic = models.with_value_head(copy.deepcopy(model))
    torch.nn.init.normal_(critic.value_head.linear.weight)
    ids = draw(2, 6)
    cache = critic.new_cache(2, 6)
    with torch.no_grad():
        parts = [critic.values(ids[:, :4], None, cache)]
        parts.append(critic.values(ids[:, 4:], None, cache))
    close(torch.cat(parts, 1), critic.values(ids))
    critic.values(ids).square().sum().backward()
    body = [p.grad for p in critic.model.parameters()]
    assert sum(float(g.abs().sum()) for g in body if g is not None) > 0
    assert all(p.grad is None for p in model.parameters())


# Sampling, scoring, collecting


def prompts():
    return pad([[1], [1, 4, 5], [1, 7], [1, 4, 5, 6, 8]] * 4)


@pytest.mark.parametrize("wrap", [lambda m: m, models.with_value_head])
def test_sampled_logprobs_equal_those_of_scoring(model, wrap, float64):
    policy = wrap(model)
    ids, mask = prompts()
    generator = torch.Generator().manual_seed(0)
    out, out_mask, logprobs = generate(
        policy, ids, mask, 12, 0.8, eos_id=2, generator=generator
    )
    assert out_mask.sum(-1).min() < out_mask.sum(-1).max(), "rows end at their time"
    with torch.no_grad():
        scored = token_logprobs(policy, ids, mask, out, out_mask, 0.8)
    close(logprobs, scored)


def test_a_row_does_not_depend_on_its_neighbours(model):
    """Greedy rows come out the same alone and in a padded batch that shrinks."""
    ids, mask = prompts()
    out, out_mask, _ = generate(model, ids, mask, 15, top_k=1, eos_id=2)
    for i in range(4):
        alone = ids[i : i + 1, -int(mask[i].sum()) :]
        row, _, _ = generate(
            model, alone, torch.ones_like(alone), 15, top_k=1, eos_id=2
        )
        assert row[0].tolist() == out[i][out_mask[i].bool()].tolist()


def test_collect_runs_on_every_model(model, float64):
    tokenizer = WordTokenizer.train(["a b c d e f g"], vocab_size=VOCAB)
    assert len(tokenizer) == VOCAB
    rollout = collect(
        model, ["a b", "", "c a b"], lambda prompts, completions, **_: [1.0] * 12,
        tokenizer, 6, 4, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    with torch.no_grad():
        scored = token_logprobs(
            model, rollout.prompt_ids, rollout.prompt_mask,
            rollout.completion_ids, rollout.completion_mask,
        )  # fmt: skip
    close(rollout.old_logprobs, scored)


def test_imitation_and_reinforcement_run_on_every_model(model, float64):
    """One token's share rises from chance where texts, then rewards, ask for it."""
    tokenizer = WordTokenizer.train(["a b c d e f g"], vocab_size=VOCAB)
    a, generator = tokenizer.encode("a")[0], torch.Generator().manual_seed(0)

    def share():
        with torch.no_grad():
            return float(model(torch.tensor([[1]]))[0][0, -1].softmax(-1)[a])

    before, learner = share(), copy.deepcopy(model)
    texts = [[1, a, 5, 2], [1, a, 6, 2]]
    config = FitConfig(steps=40, batch_size=8, learning_rate=3e-2)
    fit(learner, texts, config, generator=generator)
    learnt, _ = learner(torch.tensor([[1]]))
    assert learnt[0, -1].softmax(-1)[a] > 0.8 > before

    def reward(prompts, completions, completion_ids, **_):
        return [float(row[0] == a) for row in completion_ids]

    config = PolicyConfig(steps=30, group_size=64, max_new_tokens=2, learning_rate=3e-2)
    history = train_policy(model, [""], reward, config, tokenizer, generator)
    assert history["reward/mean"][0] < 0.7
    assert share() > max(0.8, before)


# Against the library's own classes


@pytest.mark.parametrize("kind", ["hf-gpt2", "hf-llama"])
def test_a_wrapped_model_says_what_the_library_says(kind):
    model = make(kind)
    ids, mask = pad([draw(n, seed=n).tolist() for n in (3, 7)])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = model.hf(ids, attention_mask=mask, position_ids=positions).logits
    close(model(ids, mask)[0], expected, atol=1e-12)
    assert (model.vocab_size, model.width, model.max_length) == (VOCAB, 16, LONGEST)
    assert not model.hf.training


def test_greedy_text_is_that_of_the_librarys_generate():
    for kind in ("hf-gpt2", "hf-llama"):
        model = make(kind)
        ids, mask = prompts()
        ours, ours_mask, _ = generate(model, ids, mask, 10, top_k=1, eos_id=2)
        theirs = model.hf.generate(
            ids, attention_mask=mask, max_new_tokens=10, do_sample=False,
            eos_token_id=2, pad_token_id=0,
        )[:, ids.shape[1] :]  # fmt: skip
        real = ours_mask.bool()
        assert torch.equal(ours[real], theirs[:, : ours.shape[1]][real])


def test_a_wrapped_model_keeps_its_type():
    model = make("hf-gpt2").float()
    critic = models.with_value_head(model)
    logits, values = critic.logits_and_values(draw(1, 4))
    assert logits.dtype == values.dtype == torch.float32


def test_a_model_that_continues_no_text_is_refused():
    from transformers import GPT2Model, T5Config, T5ForConditionalGeneration

    config = GPT2Config(
        vocab_size=7, n_embd=8, n_layer=1, n_head=1, bos_token_id=1, eos_token_id=2
    )
    with pytest.raises(ValueError, match="GPT2Model scores no next tokens"):
        models.from_hf(GPT2Model(config))
    config = T5Config(
        vocab_size=7, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2
    )
    with pytest.raises(ValueError, match="T5ForConditionalGeneration reads a source"):
        models.from_hf(T5ForConditionalGeneration(config))


# Recurrent cells


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_the_equations_of_the_cells(kind, tied):
    """Each cell's equations, written out one token and one gate at a time."""
    model = models.build(kind, VOCAB, width=8, layers=1, tied=tied).double()
    for parameter in model.cells.parameters():
        parameter.add_(0.2 * torch.randn(parameter.shape))
    cells, ids = model.cells, draw(1, 6)
    h = c = torch.zeros(8).double()
    expected = []
    for token in ids[0]:
        a = cells.weight_ih_l0 @ model.token_embedding.weight[token]
        a = (a + cells.bias_ih_l0).split(8)
        b = (cells.weight_hh_l0 @ h + cells.bias_hh_l0).split(8)
        if kind == "rnn":
            h = torch.tanh(a[0] + b[0])
        elif kind == "lstm":
            add, forget, show = (torch.sigmoid(a[i] + b[i]) for i in (0, 1, 3))
            c = forget * c + add * torch.tanh(a[2] + b[2])
            h = show * torch.tanh(c)
        else:
            reset, stay = (torch.sigmoid(a[i] + b[i]) for i in (0, 1))
            h = (1 - stay) * torch.tanh(a[2] + reset * b[2]) + stay * h
        expected.append(h)
    hidden = model.hidden(ids)[0]
    close(hidden, torch.stack(expected), atol=1e-12)
    weight = model.token_embedding.weight if tied else model.out.weight
    close(model(ids)[0][0], F.linear(hidden, weight), atol=1e-12)


@pytest.mark.parametrize(("kind", "gates"), [("rnn", 1), ("lstm", 4), ("gru", 3)])
@pytest.mark.parametrize("tied", [True, False])
def test_size_and_first_weights_of_a_recurrent_model(kind, gates, tied):
    width, layers = 8, 2
    model = models.build(kind, VOCAB, width=width, layers=layers, tied=tied).double()
    by_hand = VOCAB * width * (1 if tied else 2)
    by_hand += layers * gates * (2 * width**2 + 2 * width)
    assert models.num_parameters(model) == by_hand
    for layer in range(layers):
        recurrent = getattr(model.cells, f"weight_hh_l{layer}")
        for gate in recurrent.split(width):
            close(gate @ gate.T, torch.eye(width).double(), atol=1e-6)
        biases = [getattr(model.cells, f"bias_{s}_l{layer}") for s in ("ih", "hh")]
        expected = torch.zeros(gates, width).double()
        if kind == "lstm":
            expected[1] = 1  # the forget gate
        assert torch.equal(sum(biases).view(gates, width), expected)


# GPT-2


def gpt2(**options):
    torch.manual_seed(0)
    shape = {"n_embd": 12, "n_layer": 3, "n_head": 3, "n_positions": 16}
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    config = GPT2Config(vocab_size=VOCAB, initializer_range=0.3, **shape, **ids,
                        **options)  # fmt: skip
    model = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms are not trivial
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@torch.no_grad()
def test_our_transformer_with_the_weights_of_gpt2():
    theirs = gpt2()
    before = torch.random.get_rng_state()
    ours = models.from_gpt2(theirs)
    assert torch.equal(torch.random.get_rng_state(), before)
    ids, mask = pad([draw(n, seed=n).tolist() for n in (5, 16, 9)])
    whole = ids[1:2]
    close(ours(whole)[0], theirs(whole).logits)
    real = mask.bool()
    close(ours(ids, mask)[0][real], models.from_hf(theirs)(ids, mask)[0][real])
    assert ours(whole)[0].std() > 0.1
    theirs.transformer.wte.weight.zero_()
    assert ours.token_embedding.weight.abs().sum() > 0, "a copy, not a view"


@torch.no_grad()
def test_our_transformer_becomes_gpt2_and_comes_back(tmp_path):
    ours = make("transformer")
    theirs = models.to_gpt2(ours)
    ids = draw(2, 20)
    close(theirs(ids).logits, ours(ids)[0])
    theirs.save_pretrained(tmp_path)
    stored = GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float64)
    close(stored(ids).logits, ours(ids)[0])
    assert stored.config.eos_token_id == 2
    again = models.from_gpt2(stored)
    assert again.config == ours.config
    for (name, a), (_, b) in zip(
        ours.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation_function": "relu"}, "activation_function='relu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx=True"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon=1e-06"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"n_inner": 20}, r"n_inner=20, our Transformer has 4 \* n_embd = 48"),
    ],
)
def test_a_gpt2_that_ours_cannot_be_is_refused_by_its_setting(options, message):
    with pytest.raises(ValueError, match=message):
        models.from_gpt2(gpt2(**options))


def test_other_architectures_are_not_gpt2():
    with pytest.raises(ValueError, match="LlamaForCausalLM is not a GPT2LMHeadModel"):
        models.from_gpt2(make("hf-llama").hf)
    with pytest.raises(ValueError, match="str is not a GPT2LMHeadModel"):
        models.from_gpt2("town-gpt2")


# Files


@pytest.mark.parametrize("kind", OURS)
def test_save_and_load(kind, tmp_path):
    model, path = make(kind), tmp_path / "model.safetensors"
    models.save(model, path)
    again = models.load(path)
    assert torch.equal(again(draw(2, 9))[0], model(draw(2, 9))[0])
    assert again.config == model.config


@pytest.mark.parametrize(
    "wrong",
    [
        {"config": "{"}, {"config": "[]"}, {"config": '{"width": "wide"}'}, {},
        {"config": '{"vocab_size": 9, "width": 32}'},
    ],
)  # fmt: skip
def test_a_model_file_that_does_not_fit_together_is_named(wrong, tmp_path):
    path = tmp_path / "model.safetensors"
    model = models.build("transformer", 9, width=16, layers=1, heads=2)
    save_file(model.state_dict(), path, metadata={"kind": "transformer", **wrong})
    with pytest.raises(ValueError, match=r"model\.safetensors.*does not fit together"):
        models.load(path)


@pytest.mark.parametrize("kind", OURS)
def test_a_seed_decides_the_weights(kind):
    first, again, other = (
        models.build(kind, 7, torch.Generator().manual_seed(seed), width=8)
        for seed in (1, 1, 2)
    )
    for a, b, c in zip(*(m.parameters() for m in (first, again, other)), strict=True):
        assert torch.equal(a, b)
        if a.dim() == 2:
            assert not torch.equal(a, c)


def test_wrong_arguments_are_named(tmp_path):
    for wrong in ({"cell": "lstm"}, {"heads": 2}):
        with pytest.raises(ValueError, match=f"gru has no {next(iter(wrong))}"):
            models.build("gru", 7, **wrong)
    with pytest.raises(ValueError, match="layers=0"):
        models.build("lstm", 7, layers=0)
    with pytest.raises(ValueError, match="cell='mamba'"):
        models.RecurrentConfig(7, cell="mamba")
    critic = models.with_value_head(make("gru"))
    with pytest.raises(ValueError, match="ValueModel is not a model that `build`"):
        models.save(critic, tmp_path / "x")


@pytest.mark.parametrize("size", [3, 4])
def test_a_cache_that_is_longer_than_expected_grows(size):
    torch.manual_seed(0)
    model = models.from_hf(models.to_gpt2(models.build("transformer", 11, width=16)))
    ids = torch.tensor([[1, 2, 3], [0, 4, 5]])
    mask, more = (ids > 0).long(), torch.tensor([[6, 7], [8, 9]])
    found = []
    for room in (size, 5):
        cache = model.new_cache(2, room)
        model(ids, mask, cache)
        found.append(torch.cat([model(t[:, None], None, cache)[0] for t in more.T], 1))
    torch.testing.assert_close(*found)
