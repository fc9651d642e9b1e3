"""The trainer: every method learns, and no bookkeeping changes what it does."""

import copy
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from tokrl import models, processes
from tokrl.batches import Rollout
from tokrl.rewards import CombinedReward
from tokrl.rollout import collect
from tokrl.runs import reproducible
from tokrl.tokenizers import WordTokenizer
from tokrl.training import METHODS, Learner, PolicyConfig, train_policy
from tokrl.training.experience import pay_kl, prepare

TOKENIZER = WordTokenizer.train(["a b c d e"], vocab_size=9)
A = TOKENIZER.vocab["a"]
METHOD = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(autouse=True)
def float64():
    yield reproducible(0)
    torch.set_default_dtype(torch.float32)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def policy(seed=0):
    shape = {"width": 16, "layers": 1, "heads": 2, "max_length": 16}
    return models.build("transformer", len(TOKENIZER), seeded(seed), **shape)


def count_a(completion_ids, **_):
    """Token reward: 1 for each token a."""
    return [[float(i == A) for i in ids] for ids in completion_ids]


def share_a(completion_ids, **_):
    """Sequence reward: the share of tokens that are a."""
    return [ids.count(A) / len(ids) for ids in completion_ids]


def settings(method, **more):
    small = {"prompts_per_step": 2, "group_size": 4, "max_new_tokens": 6}
    return PolicyConfig.of(method, **{**small, **more})


def experience(config, model, seed=3):
    """A rollout of ragged completions, prepared, with a reference and a critic."""
    rollout = collect(model, ["", "a b"], share_a, TOKENIZER, config.max_new_tokens,
                      config.group_size, 1.0, seeded(seed))  # fmt: skip
    assert rollout.lengths.min() < rollout.lengths.max()
    rollout, _, ref_logprobs = pay_kl(rollout, policy(seed=7), config)
    critic = (
        models.with_value_head(policy(seed=8)) if config.advantage == "gae" else None
    )
    if critic is not None:
        torch.nn.init.normal_(critic.value_head.linear.weight, generator=seeded(1))
    return critic, prepare(rollout, model, critic, ref_logprobs, config)


def gradients(learner, batch):
    learner.config = replace(learner.config, clip_grad=1e9)
    metrics = learner.update(batch)
    return metrics, [None if p.grad is None else p.grad for p in learner.parameters()]


# --- what an update does --------------------------------------------------------------


@METHOD
@pytest.mark.parametrize("size", [1, 3])
def test_small_backward_passes_add_up_to_the_large_one(method, size):
    model = policy()
    config = settings(method, kl_coef=0.1, entropy_coef=0.01, entropy_share=0.7)
    critic, batch = experience(config, model)
    found = []
    for micro_batch in (0, size):
        learner = copy.deepcopy(
            Learner(model, critic, replace(config, micro_batch=micro_batch))
        )
        found.append(gradients(learner, batch))
    (whole, one), (parts, many) = found
    assert any(grad is not None and grad.abs().max() > 1e-6 for grad in one)
    for a, b in zip(one, many, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(b, a, rtol=0, atol=1e-12)
    assert parts == pytest.approx(whole, abs=1e-12)


@METHOD
@pytest.mark.parametrize("micro_batch", [0, 2])
def test_rows_that_pull_at_nothing_may_be_left_out(method, micro_batch, monkeypatch):
    model = policy()
    config = settings(method, micro_batch=micro_batch)
    critic, batch = experience(config, model)
    mask = batch.rollout.completion_mask
    advantages = mask * torch.randn(mask.shape, generator=seeded(4))
    advantages = advantages.index_fill(0, torch.tensor([1, 2, 5]), 0.0)
    batch = replace(batch, advantages=advantages)
    read, found = [], []
    loss = Learner._loss
    monkeypatch.setattr(
        Learner,
        "_loss",
        lambda self, piece, *w: read.append(piece) or loss(self, piece, *w),
    )
    for skip_idle in (False, True):
        learner = Learner(model, critic, replace(config, skip_idle=skip_idle))
        found.append(gradients(copy.deepcopy(learner), batch))
        rows = sum(len(piece.rollout) for piece in read)
        read.clear()
        assert rows == (5 if skip_idle and critic is None else 8)
    for a, b in zip(*(grads for _, grads in found), strict=True):
        if a is not None:
            torch.testing.assert_close(b, a, rtol=0, atol=1e-12)
    assert found[1][0]["policy/grad_norm"] > 1e-6
    assert found[1][0]["policy/entropy"] > 0.5  # a mean, not a part of one
    # With nothing that pulls, nothing moves; and what adds to the loss pulls.
    none = replace(batch, advantages=torch.zeros_like(advantages))
    learner = Learner(model, critic, replace(config, skip_idle=True))
    if critic is None:
        assert gradients(copy.deepcopy(learner), none)[0]["policy/grad_norm"] == 0
    learner = Learner(model, critic, replace(config, skip_idle=True, entropy_coef=0.1))
    assert gradients(copy.deepcopy(learner), none)[0]["policy/grad_norm"] > 1e-6


def test_every_row_is_in_one_minibatch_of_each_epoch(monkeypatch):
    model = policy()
    config = settings("grpo", epochs=3, minibatches=3)
    _, batch = experience(config, model)
    learner, seen = Learner(model, None, config), []

    def note(part, step):
        seen.append(part.rollout.old_logprobs.sum(-1).tolist())
        return {"policy/loss": float(len(seen))}

    monkeypatch.setattr(learner, "update", note)
    assert learner.learn(batch, seeded(), 1) == {"policy/loss": 5.0}
    expected = sorted(batch.rollout.old_logprobs.sum(-1).tolist())
    assert len(seen) == 9
    for epoch in range(3):
        rows = sorted(x for part in seen[3 * epoch :][:3] for x in part)
        assert rows == pytest.approx(expected)
    assert seen[:3] != seen[3:6], "each pass has its own order"


@METHOD
def test_without_a_signal_the_weights_stay_to_the_last_bit(method):
    """Also when Adam still has momentum from a step before."""
    if method == "ppo":
        pytest.skip("a critic has something to learn from any reward")
    model = policy()
    config = settings(method, group_size=3, resample=0)
    learner = Learner(model, None, config)
    _, batch = experience(config, model)
    learner.update(batch)
    before = copy.deepcopy(model.state_dict())
    reward = 0.0 if method == "reinforce" else 0.1
    rollout = replace(
        batch.rollout, token_rewards=torch.zeros_like(batch.rollout.token_rewards)
    )
    rollout.token_rewards[:, 0] = reward
    learner.update(prepare(rollout, model, None, None, config))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_first_update_is_the_same_with_and_without_a_ratio():
    """Before anything has moved the ratio is 1, and the clip out of reach."""
    model, found = policy(), []
    for kind in ("reinforce", "ppo", "cispo"):
        config = settings("dr_grpo", kind=kind, clip_high=5.0)
        _, batch = experience(config, model)
        learner = copy.deepcopy(Learner(model, None, config))
        metrics, grads = gradients(learner, batch)
        assert metrics["policy/ratio"] == pytest.approx(1)
        found.append(torch.cat([g.flatten() for g in grads]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-12)


def test_the_kl_in_the_loss_pulls_back_to_the_reference():
    """With no reward at all the policy walks to the reference."""
    reference, model = policy(seed=7), policy()
    config = settings("grpo", steps=120, group_size=32, kl_coef=1.0, learning_rate=1e-2)
    history = train_policy(
        model, [""], lambda completions, **_: [0.0] * len(completions), config,
        TOKENIZER, seeded(), reference,
    )  # fmt: skip
    drift = history["policy/ref_kl"]
    assert sum(drift[:5]) / 5 > 0.5
    assert abs(sum(drift[-20:]) / 20) < 0.1


# --- what a run does ------------------------------------------------------------------


@METHOD
def test_every_method_learns_a_known_task(method):
    """Six tokens of a: the best share is 1, chance gives about 1/9."""
    config = settings(method, steps=80, group_size=16, learning_rate=1e-2)
    model = policy(seed=2)
    history = train_policy(model, [""], share_a, config, TOKENIZER, seeded(1))
    start, end = (sum(history["reward/mean"][part]) / 5
                  for part in (slice(5), slice(-5, None)))  # fmt: skip
    assert start < 0.5
    assert end > 0.95


def test_metrics_have_the_fields_names():
    history = train_policy(
        policy(), [""], count_a, settings("ppo", steps=1, kl_coef=0.1), TOKENIZER,
        seeded(),
    )  # fmt: skip
    for name in ("reward/mean", "reward/frac_zero_std", "policy/clip_frac",
                 "policy/approx_kl", "policy/ref_kl", "policy/entropy", "value/loss",
                 "value/explained", "time/collect", "time/update"):  # fmt: skip
        assert len(history[name]) == 1, name


def test_the_parts_of_a_reward_are_in_the_history():
    parts = CombinedReward({"share": (share_a, 2.0), "count": (count_a, 0.5)})
    config = settings("rloo", steps=4)
    history = train_policy(policy(), [""], parts, config, TOKENIZER, seeded())
    for total, share, count in zip(
        history["reward/mean"], history["reward/share"], history["reward/count"],
        strict=True,
    ):  # fmt: skip
        assert total == pytest.approx(2 * share + count / 2)
    assert max(history["reward/share"]) > 0


def test_columns_reach_the_reward_with_their_prompt():
    seen = []

    def reward(prompts, completions, answer, **_):
        seen.extend(zip(prompts, answer, strict=True))
        return [0.0] * len(completions)

    columns = {"answer": ["one", "two"]}
    config = settings("grpo", steps=3)
    train_policy(policy(), ["a", "b"], reward, config, TOKENIZER, seeded(),
                 columns=columns)  # fmt: skip
    assert set(seen) == {("a", "one"), ("b", "two")}
    with pytest.raises(ValueError, match=r"columns\['answer'\] has 1 entries for 2"):
        train_policy(policy(), ["a", "b"], reward, config, TOKENIZER,
                     columns={"answer": ["one"]})  # fmt: skip


def test_groups_without_signal_are_drawn_again():
    """Prompt a earns the same whatever follows: only b is left to learn from."""

    def reward(prompts, completion_ids, **_):
        found = share_a(completion_ids)
        return [0.5 if p == "a" else r for p, r in zip(prompts, found, strict=True)]

    for resample, most in ((0, 1.0), (8, 0.0)):
        config = settings("dapo", steps=6, group_size=8, resample=resample)
        history = train_policy(
            policy(), ["a", "b"], reward, config, TOKENIZER, seeded()
        )
        assert max(history["reward/frac_zero_std"]) == most


def same_run(first, second):
    """The same metrics in every row, but for the seconds."""
    for a, b in zip(first.rows, second.rows, strict=True):
        kept = {name for name in a if not name.startswith("time/")}
        assert {n: a[n] for n in kept} == {n: b[n] for n in kept}


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_a_killed_run_goes_on_to_the_last_bit(method, tmp_path):
    config = settings(method, steps=6, kl_coef=0.1, epochs=2, minibatches=2)
    whole_model = policy()
    whole = train_policy(whole_model, ["", "a"], share_a, config, TOKENIZER, seeded())
    calls = []

    def dies(completion_ids, **_):
        calls.append(1)
        if len(calls) == 5:
            raise OSError("the machine is gone")
        return share_a(completion_ids)

    half = replace(config, checkpoint_every=3)
    run = [["", "a"], TOKENIZER, tmp_path / "run"]
    with pytest.raises(Exception, match=r"machine is gone|dies"):
        train_policy(policy(), run[0], dies, half, run[1], seeded(), folder=run[2])
    model = policy()
    rest = train_policy(model, run[0], share_a, half, run[1], seeded(), folder=run[2],
                        resume=True)  # fmt: skip
    same_run(whole, rest)
    for name, tensor in whole_model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    with pytest.raises(ValueError, match="model="):
        train_policy(policy(seed=5), run[0], share_a, half, run[1], seeded(),
                     folder=run[2], resume=True)  # fmt: skip


def test_ctrl_c_saves_and_raises(tmp_path):
    calls = []

    def pressed(completion_ids, **_):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return share_a(completion_ids)

    config = settings("rloo", steps=4)
    with pytest.raises(KeyboardInterrupt):
        train_policy(policy(), [""], pressed, config, TOKENIZER, seeded(),
                     folder=tmp_path)  # fmt: skip
    rest = train_policy(policy(), [""], share_a, config, TOKENIZER, seeded(),
                        folder=tmp_path, resume=True)  # fmt: skip
    same_run(rest, train_policy(policy(), [""], share_a, config, TOKENIZER, seeded()))


def test_a_number_that_is_not_finite_stops_the_run(tmp_path):
    """Named, with the weights and the last checkpoint as they were."""
    model, config = policy(), settings("grpo", steps=9, checkpoint_every=1)
    calls = []

    def breaks(completion_ids, **_):
        calls.append(1)
        if len(calls) == 3:
            with torch.no_grad():
                model.blocks[0].up.bias[0] = torch.nan
        return share_a(completion_ids)

    with pytest.raises(FloatingPointError, match=r"step 3: .*blocks\.0\.up\.bias"):
        train_policy(model, [""], breaks, config, TOKENIZER, seeded(), folder=tmp_path)
    rest = train_policy(policy(), [""], share_a, config, TOKENIZER, seeded(),
                        folder=tmp_path, resume=True)  # fmt: skip
    assert len(rest) == 9


@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        ("grpo", {"scale": "variance"}), ("dapo", {"resample": -1}),
        ("ppo", {"gae_lambda": 1.1}), ("ppo", {"value_clip": 0.0}),
        ("grpo", {"minibatches": 9}), ("grpo", {"kl_in": "advantage"}),
        ("gspo", {"group_size": 1}), ("grpo", {"entropy_share": 0.0}),
        ("cispo", {"clip_high": 0.2}), ("trpo", {"method": "trpo"}),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(method, wrong):
    more = {} if method == "trpo" else wrong
    with pytest.raises(ValueError, match=next(iter(wrong))):
        settings(method, **more)


@pytest.mark.parametrize(
    "field", ["learning_rate", "gamma", "kl_coef", "value_clip", "entropy_share"]
)
def test_a_number_in_quotes_is_named(field):
    with pytest.raises(ValueError, match=f"{field}='3e-4'"):
        PolicyConfig(**{field: "3e-4"})


def test_what_training_cannot_use_is_named():
    for wrong, message in (
        ({"critic": policy()}, "critic is a Transformer.*with_value_head"),
        ({"columns": {"device": ["cpu"]}}, "columns has 'device'"),
        ({"columns": {"answer": ["a", "b"]}}, r"columns\['answer'\] has 2 entries"),
    ):
        config = settings("ppo", steps=1)
        with pytest.raises(ValueError, match=message):
            train_policy(policy(), [""], share_a, config, TOKENIZER, **wrong)
    for prompts, options, message in (
        ("ab", {}, "prompts='ab': give a list"), ([], {}, r"prompts=\[\]"),
        (["a"], {"group_size": 0}, "group_size=0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            collect(policy(), prompts, share_a, TOKENIZER, 3, **options)


def test_rollouts_with_groups_of_two_sizes_are_not_joined():
    parts = [collect(policy(), [""], share_a, TOKENIZER, 3, size, generator=seeded())
             for size in (2, 4)]  # fmt: skip
    with pytest.raises(ValueError, match=r"groups of \[2, 4\]"):
        Rollout.join(parts)
    with pytest.raises(ValueError, match="at least one"):
        Rollout.join([])


# --- several processes ----------------------------------------------------------------


def halves(folder):
    """In one of several processes: its part of a batch, the gradient of all of it."""
    reproducible(0)
    count, rank = processes.join(), processes.number()
    assert dist.get_backend() == "gloo"
    for method in METHODS:
        torch.save(half_gradient(method, rank, count), f"{folder}/{method}{rank}.pt")
    model = policy()
    config = settings("ppo", steps=3, kl_coef=0.1, checkpoint_every=2)
    history = train_policy(model, ["", "a"], share_a, config, TOKENIZER, seeded(),
                           folder=f"{folder}/run")  # fmt: skip
    torch.save([model.state_dict(), history["reward/mean"]], f"{folder}/end{rank}.pt")
    dist.destroy_process_group()


def half_gradient(method, rank, count):
    config = settings(method, kl_coef=0.1, entropy_coef=0.01, entropy_share=0.6)
    model = policy()
    rollout, ref_logprobs = ragged(config)
    critic = models.with_value_head(policy(seed=8)) if method == "ppo" else None
    rows = torch.arange(len(rollout)).chunk(count)[rank]
    part = rollout.take(rows, rollout.group_size)
    batch = prepare(part, model, critic, ref_logprobs[rows], config)
    _, grads = gradients(Learner(model, critic, config), batch)
    return [g for g in grads if g is not None]


def ragged(config) -> tuple[Rollout, torch.Tensor]:
    rollout = collect(policy(), ["", "a b"], share_a, TOKENIZER, 6, 4, 1.0, seeded(3))
    rollout, _, ref_logprobs = pay_kl(rollout, policy(seed=7), config)
    return rollout, ref_logprobs


def test_two_processes_have_the_gradient_of_one(tmp_path):
    """And train on together, with one set of weights and one log.

    On a machine without a GPU it is `--multi_gpu` that makes accelerate start several
    processes; with `--cpu` it starts one, and says nothing.
    """
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
              "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
              "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
    quiet = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run([*launch, __file__, str(tmp_path)], env=quiet, timeout=300,
                           capture_output=True, text=True)  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    for method in METHODS:
        one = half_gradient(method, 0, 1)
        for rank in (0, 1):
            shared = torch.load(tmp_path / f"{method}{rank}.pt")
            for a, b in zip(shared, one, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    (first, means), (second, same) = (
        torch.load(tmp_path / f"end{rank}.pt") for rank in (0, 1)
    )
    assert means == same
    assert all(torch.equal(first[name], second[name]) for name in first)
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert len(lines) == 3


def test_alone_nothing_is_shared(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert processes.join() == 1
    assert (processes.count(), processes.number()) == (1, 0)
    assert processes.from_all("x") == ["x"]
    tensor = torch.ones(2)
    processes.all_sum(tensor)
    assert tensor.tolist() == [1, 1]


if __name__ == "__main__":
    halves(sys.argv[1])
