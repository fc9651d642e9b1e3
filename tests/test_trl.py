"""Losses and advantages against those of TRL, an independent implementation.

GRPO and its kin: a real `GRPOTrainer` is made (of a tiny GPT-2, which takes
milliseconds), so that every option goes the way that a user's would, and nothing of
TRL is replaced; its `_compute_loss` is given a batch with known log-probs before the
step. A stand-in for `self` would have to be told which attributes the method reads,
and would not notice if an option came to mean something else.
PPO: TRL computes returns and losses inside the one function that also samples and
steps. The statements that do so are cut out of the installed source and run here.
"""

import ast
import copy
import inspect
import socket
import textwrap
from types import SimpleNamespace

import pytest
import torch

from tokrl import models, pretrained
from tokrl.advantages import (
    compute_gae,
    group_advantages,
    leave_one_out_advantages,
)
from tokrl.losses import (
    aggregate,
    kl_estimate,
    policy_loss,
    select_by_entropy,
    token_weights,
    value_loss,
)
from tokrl.masking import length_mask, whiten
from tokrl.rewards import ValidityReward, as_sequence_reward
from tokrl.scoring import completion_logits, entropy, token_logprobs
from tokrl.tokenizers import Tokenizer, WordTokenizer
from tokrl.world import World

pytest.importorskip("trl")

F64 = torch.float64
GROUPS, SIZE, LENGTH = 3, 4, 9
ROWS = GROUPS * SIZE


def close(got, expected, atol=1e-10):
    got, expected = (torch.as_tensor(x, dtype=F64) for x in (got, expected))
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*_):
        raise OSError("a test of the losses needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny GPT-2 with uneven predictions, on disk: TRL loads its reference there."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=14, n_embd=16, n_layer=1, n_head=2, n_positions=16,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.5,
        embd_pdrop=0, attn_pdrop=0, resid_pdrop=0,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(config).save_pretrained(path)
    return path


def make_trainer(folder, reward=None, kind="GRPO", parts=1, **options):
    """A trainer of TRL, in float64, about to take a step in so many `parts`."""
    import trl
    from datasets import Dataset
    from transformers import GPT2LMHeadModel

    trainer = getattr(trl, f"{kind}Trainer")
    if options.get("importance_sampling_level") == "sequence_token":
        from trl.experimental.gspo_token import GRPOTrainer as trainer
    rows = options.pop("rows", ROWS)
    options = {"num_generations": SIZE, "temperature": 0.8, **options}
    arguments = getattr(trl, f"{kind}Config")(
        str(folder / "run"), use_cpu=True, bf16=False, report_to="none",
        per_device_train_batch_size=rows // parts, gradient_accumulation_steps=parts,
        max_completion_length=LENGTH, **options,
    )  # fmt: skip
    made = trainer(
        GPT2LMHeadModel.from_pretrained(folder).double(),
        reward or (lambda completions, **_: [0.0] * len(completions)),
        arguments,
        Dataset.from_list([{"prompt": "a b"}] * rows),
        processing_class=WordTokenizer.train(["a b c d e f g h i j"]).to_hf(),
    )
    made.current_gradient_accumulation_steps = parts  # as its training loop does
    return made


def experience(trainer, seed=0, move=0.3):
    """A batch as TRL wants it, and the log-probs (ours) that its loss is made of.

    The mask has holes, as where a tool has written; one row counts nothing.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=F64)

    prompt = torch.randint(4, 14, (ROWS, 3), generator=generator)
    ids = torch.randint(4, 14, (ROWS, LENGTH), generator=generator)
    lengths = torch.randint(1, LENGTH + 1, (ROWS,), generator=generator)
    written = length_mask(lengths, LENGTH)
    chosen = (torch.rand(ROWS, LENGTH, generator=generator) < 0.8).long()
    chosen[-1] = 0
    mask = written * chosen
    logprobs, entropies = score(trainer, prompt, ids, written)
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": ids,
        "completion_mask": written,
        "tool_mask": chosen,
        "advantages": noise(ROWS),
        "old_per_token_logps": logprobs.detach() + move * noise(ROWS, LENGTH),
        "ref_per_token_logps": logprobs.detach() + 0.5 * noise(ROWS, LENGTH),
        "num_items_in_batch": mask.sum(),
    }
    return inputs, mask, logprobs, entropies


def score(trainer, prompt, ids, written):
    """Our log-probs of a trainer's model, in training mode again; our entropies."""
    model = models.from_hf(trainer.model)
    arguments = model, prompt, torch.ones_like(prompt), ids, written
    logprobs = token_logprobs(*arguments, trainer.temperature)
    with torch.no_grad():
        entropies = entropy(completion_logits(*arguments) / trainer.temperature)
    trainer.model.train()
    return logprobs, entropies


def ours(inputs, mask, logprobs, beta=0.0, rows=slice(None), **options):
    """The loss and the metrics of the same batch, or of some rows of it."""
    advantages = inputs["advantages"]
    if advantages.dim() == 1:
        advantages = advantages[:, None].expand(ROWS, LENGTH)
    old, ref = (inputs[f"{name}_per_token_logps"] for name in ("old", "ref"))
    mode = options.get("aggregate", "token_mean")
    weights = token_weights(mask.double(), mode, options.get("max_length"))
    if "selected" in options:
        weights = weights * options.pop("selected")
    loss, metrics = policy_loss(
        *(x[rows] for x in (logprobs, old, advantages, mask)),
        **options, weights=weights[rows],
    )  # fmt: skip
    if beta:
        kl = kl_estimate(logprobs, ref, "k3")
        loss = loss + beta * aggregate(kl, mask, mode, options.get("max_length"))
    return loss, metrics


def same_loss_and_gradient(trainer, theirs, loss):
    close(loss, theirs)
    assert theirs.abs() > 1e-4
    parameters = list(trainer.model.parameters())
    for got, expected in zip(
        torch.autograd.grad(loss, parameters, retain_graph=True),
        torch.autograd.grad(theirs, parameters),
        strict=True,
    ):
        close(got, expected)


GSPO = {"importance_sampling_level": "sequence", "epsilon": 0.05, "epsilon_high": 0.08}
# TRL's options for its loss, and ours: the clip is taken over from TRL's.
CONFIGURATIONS = {
    "grpo": ({"loss_type": "grpo"}, {"aggregate": "sequence_mean"}),
    "bnpo": ({"loss_type": "bnpo"}, {}),
    "dapo": ({"loss_type": "dapo", "epsilon_high": 0.28}, {}),
    "dr_grpo": (
        {"loss_type": "dr_grpo"},
        {"aggregate": "constant", "max_length": LENGTH},
    ),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.2}, {"kind": "cispo"}),
    "gspo": (
        {"loss_type": "grpo", **GSPO},
        {"kind": "gspo", "aggregate": "sequence_mean"},
    ),
    "gspo, token mean": ({"loss_type": "dapo", **GSPO}, {"kind": "gspo"}),
    "gspo_token": (
        {**GSPO, "loss_type": "grpo", "importance_sampling_level": "sequence_token"},
        {"kind": "gspo_token", "aggregate": "sequence_mean"},
    ),
}


def configured(name, folder, **more):
    """TRL's trainer of that configuration, and our arguments."""
    theirs, options = CONFIGURATIONS[name]
    trainer = make_trainer(folder, **theirs, **more)
    clip = {"clip_low": trainer.epsilon_low, "clip_high": trainer.epsilon_high}
    return trainer, {**options, **clip}


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_loss_and_its_gradient_are_those_of_trl(name, beta, folder):
    trainer, options = configured(name, folder, beta=beta)
    for seed in range(3):
        inputs, mask, logprobs, _ = experience(trainer, seed)
        theirs = trainer._compute_loss(trainer.model, inputs)
        loss, metrics = ours(inputs, mask, logprobs, beta, **options)
        same_loss_and_gradient(trainer, theirs, loss)
        assert 0 < metrics["clip_frac"] < 1
        logged = trainer._metrics["train"]
        if "clip_ratio/region_mean" in logged and options.get("kind") != "gspo":
            # TRL counts rows for gspo, and for cispo only tokens with A > 0.
            for ending, key in (("", "region"), ("_low", "low"), ("_high", "high")):
                expected = logged[f"clip_ratio/{key}_mean"][-1]
                close(metrics[f"clip_frac{ending}"], expected, atol=1e-6)
        if beta:
            kl = kl_estimate(logprobs, inputs["ref_per_token_logps"], "k3")
            close(aggregate(kl, mask), logged["kl"][-1], atol=1e-6)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_loss_is_that_of_trl_with_an_advantage_for_each_token(name, folder):
    trainer, options = configured(name, folder)
    inputs, mask, logprobs, _ = experience(trainer, 5)
    inputs["advantages"] = inputs["old_per_token_logps"].sin()
    theirs = trainer._compute_loss(trainer.model, inputs)
    same_loss_and_gradient(trainer, theirs, ours(inputs, mask, logprobs, **options)[0])


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo", "cispo", "gspo"])
def test_micro_batches_are_those_of_trl(name, folder):
    """Slices of one batch's weights give the losses over which TRL accumulates."""
    parts = 3
    trainer, options = configured(name, folder, parts=parts)
    inputs, mask, logprobs, _ = experience(trainer)
    for start in range(0, ROWS, ROWS // parts):
        rows = slice(start, start + ROWS // parts)
        part = {k: v[rows] if v.dim() else v for k, v in inputs.items()}
        theirs = trainer._compute_loss(trainer.model, part)
        loss, _ = ours(inputs, mask, logprobs, rows=rows, **options)
        same_loss_and_gradient(trainer, theirs, loss)


def test_tokens_of_high_entropy_are_those_that_trl_keeps(folder):
    share = 0.25
    trainer, options = configured("dapo", folder, top_entropy_quantile=share)
    inputs, mask, logprobs, entropies = experience(trainer)
    selected = select_by_entropy(entropies, mask, share)
    assert selected.sum().item() == pytest.approx(share * mask.sum().item(), abs=1)
    theirs = trainer._compute_loss(trainer.model, inputs)
    loss, _ = ours(inputs, mask, logprobs, selected=selected, **options)
    same_loss_and_gradient(trainer, theirs, loss)


def test_the_first_step_of_rloo_is_reinforce_summed_over_tokens(folder):
    """TRL's RLOO weighs a row by its whole ratio; for the policy's own tokens it is 1.

    Its loss then has another value, and the gradient of ours.
    """
    trainer = make_trainer(folder, kind="RLOO", beta=0.0)
    inputs, _, logprobs, _ = experience(trainer, move=0.0)
    mask = inputs["completion_mask"]
    inputs["old_logps"] = (logprobs.detach() * mask).sum(-1)
    theirs = trainer._compute_loss(trainer.model, inputs)
    loss, _ = ours(inputs, mask, logprobs, kind="reinforce", aggregate="constant",
                   max_length=1)  # fmt: skip
    parameters = list(trainer.model.parameters())
    gradients = [torch.autograd.grad(x, parameters) for x in (theirs, loss)]
    for expected, got in zip(*gradients, strict=True):
        close(got, expected)


# Advantages, from the trainer's own sampling and rewarding


def their_advantages(folder, rewards, **options):
    def reward(completions, **_):
        assert len(completions) == len(rewards)
        return rewards.tolist()

    trainer = make_trainer(folder, reward, rows=len(rewards), **options)
    inputs = [{"prompt": "a b"}] * len(rewards)
    return trainer._generate_and_score_completions(inputs)["advantages"]


@pytest.mark.parametrize("scale", ["std", "none", "batch"])
@pytest.mark.parametrize("size", [2, 7])
def test_group_advantages_are_those_of_trl(scale, size, folder):
    rewards = torch.randn(4 * size, generator=torch.Generator().manual_seed(size))
    rewards[-size:] = 0.1  # no signal: TRL's may be a rounding error there
    name = "group" if scale == "std" else scale
    theirs = their_advantages(folder, rewards, num_generations=size, scale_rewards=name)
    got = group_advantages(rewards, size, torch.ones(4 * size, 2), scale)
    close(got[:, 0], theirs, atol=1e-6 if scale == "none" else 1e-4)
    close(got[:-size, 1], theirs[:-size], atol=1e-6)
    assert not got[-size:].any()


def test_leave_one_out_advantages_are_those_of_trl(folder):
    rewards = torch.randn(12, generator=torch.Generator().manual_seed(0))
    theirs = their_advantages(folder, rewards, kind="RLOO", beta=0.0)
    got = leave_one_out_advantages(rewards, SIZE, torch.ones(12, 2))
    close(got[:, 0], theirs, atol=1e-6)


# PPO


def run_trl(first, last, **names):
    """Run a passage of TRL's PPO loop: from where `first` is set to where `last` is.

    `names` are the variables that it finds; returns those that it leaves.
    """
    from trl.experimental.ppo import ppo_trainer

    def sets(statement, name):
        targets = getattr(statement, "targets", ())
        return any(isinstance(t, ast.Name) and t.id == name for t in targets)

    source = textwrap.dedent(inspect.getsource(ppo_trainer.PPOTrainer.train))
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        starts = [i for i, statement in enumerate(body) if sets(statement, first)]
        ends = [i for i, statement in enumerate(body) if sets(statement, last)]
        if starts and ends:
            passage = ast.Module(body[starts[0] : ends[-1] + 1], type_ignores=[])
            found = {**vars(ppo_trainer), **names}
            exec(compile(passage, "<ppo_trainer>", "exec"), found)
            return SimpleNamespace(**found)
    raise AssertionError(f"TRL's loop no longer sets {first!r} and {last!r}")


def critic(seed, lengths=(6, 1, 4, 3, 5)):
    """Rewards and values as TRL holds them: 0 where masked."""
    generator = torch.Generator().manual_seed(seed)
    mask = length_mask(torch.tensor(lengths), 6)
    draws = torch.randn(3, len(lengths), 6, generator=generator, dtype=F64)
    return *(draws * mask), mask


@pytest.mark.parametrize(
    ("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)]
)
@pytest.mark.parametrize("further", [0, 1])
def test_gae_returns_and_whitening_are_those_of_trl(gamma, gae_lambda, further):
    """TRL counts one value more, after the end token, and pays the outcome there.

    So with `further` = 1 tokens and values have masks of their own.
    """
    lengths = torch.tensor([5, 1, 4, 3, 2])
    rewards, values, _, mask = critic(0, (lengths + further).tolist())
    tokens = length_mask(lengths, 6)
    theirs = run_trl(
        "lastgaelam", "advantages", rewards=rewards, values=values,
        responses=mask, padding_mask=tokens == 0,
        args=SimpleNamespace(gamma=gamma, lam=gae_lambda),
    )  # fmt: skip
    advantages, returns = compute_gae(rewards, values, mask, gamma, gae_lambda)
    close(returns, theirs.returns)
    # TRL divides one count by another, which gives float32.
    close(whiten(advantages, tokens), theirs.advantages, atol=1e-6)
    assert theirs.advantages.abs().max() > 0.5


def test_whitening_that_keeps_the_mean_is_that_of_trl():
    from trl.experimental.ppo.ppo_trainer import masked_whiten

    rewards, *_, mask = critic(1)
    theirs = masked_whiten(rewards, mask, shift_mean=False) * mask
    close(whiten(rewards, mask, shift_mean=False), theirs, atol=1e-6)


@pytest.mark.parametrize("clip", [0.2, 1.0])
def test_the_value_loss_is_that_of_trl(clip):
    old, returns, step, mask = critic(2)
    values = (old + step).requires_grad_()
    theirs = run_trl(
        "vpredclipped", "vf_clipfrac", vpred=values, mb_values=old, mb_return=returns,
        padding_mask_p1=mask == 0, micro_batch_inds=slice(None),
        args=SimpleNamespace(cliprange_value=clip),
    )  # fmt: skip
    loss, metrics = value_loss(values, old, returns, mask, clip)
    close(loss, theirs.vf_loss)
    close(metrics["clip_frac"], theirs.vf_clipfrac, atol=1e-6)
    assert 0 < metrics["clip_frac"] < 1
    got, expected = (torch.autograd.grad(x, values)[0] for x in (loss, theirs.vf_loss))
    close(got, expected)


def test_the_policy_loss_of_ppo_is_that_of_trl():
    old, advantages, step, mask = critic(3)
    logprobs = (old + 0.3 * step).requires_grad_()
    theirs = run_trl(
        "logprobs_diff", "pg_loss", new_logprobs=logprobs, mb_logprobs=old,
        mb_advantage=advantages, padding_mask=mask == 0, micro_batch_inds=slice(None),
        args=SimpleNamespace(cliprange=0.2),
    )  # fmt: skip
    loss, metrics = policy_loss(logprobs, old, advantages, mask)
    close(loss, theirs.pg_loss)
    cut = (theirs.pg_losses2 > theirs.pg_losses)[mask == 1].double().mean()
    close(metrics["clip_frac"], cut)
    assert metrics["clip_frac"] > 0
    got, expected = (
        torch.autograd.grad(x, logprobs)[0] for x in (loss, theirs.pg_loss)
    )
    close(got, expected)


# --- TRL's trainer with our reward, on our model --------------------------------------


def test_trl_trains_town_gpt2_on_a_reward_of_ours(tmp_path):
    """Two steps of GRPOTrainer, from files alone; what it logs is what we judge."""
    import trl
    from datasets import Dataset

    path = pretrained.path("gpt2")
    tokenizer = Tokenizer.load(f"{path}/tokrl.json")
    world = World.default()
    validity, batches = ValidityReward(world, tokenizer), []

    def noting(prompts, completions, completion_ids, **columns):
        batches.append((prompts, completions, completion_ids))
        return validity(prompts, completions, completion_ids, **columns)

    reward = as_sequence_reward(noting)
    stories = world.sample_stories(8, torch.Generator().manual_seed(0))
    prompts = ["<bos>" + story.text().split(". ")[0] + "." for story in stories]
    arguments = trl.GRPOConfig(
        str(tmp_path), use_cpu=True, bf16=False, report_to="none", logging_steps=1,
        per_device_train_batch_size=32, num_generations=4, max_completion_length=24,
        max_steps=2, learning_rate=1e-3, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        path, reward, arguments, Dataset.from_list([{"prompt": p} for p in prompts])
    )
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()

    assert len(batches) == 2
    logged = [row for row in trainer.state.log_history if "reward" in row]
    for (starts, texts, ids), row in zip(batches, logged, strict=True):
        assert len(texts) == 32
        assert all(
            start in {p.removeprefix("<bos>") for p in prompts} for start in starts
        )
        assert [tokenizer.decode(row) for row in ids] == texts
        outcomes = [sum(filter(None, paid)) for paid in validity(starts, texts, ids)]
        assert row["rewards/noting/mean"] == pytest.approx(sum(outcomes) / 32)
        assert row["grad_norm"] > 0
        # With <bos> and the tokens it knows, the model mostly writes what is possible.
        assert -0.6 < row["reward"] < 0
    after = trainer.model.state_dict()
    moved = max(float((after[name] - w).abs().max()) for name, w in before.items())
    assert 1e-4 < moved < 1e-2
