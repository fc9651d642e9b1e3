"""A run that was stopped, however it was stopped, goes on as if it had not been."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tokrl import models
from tokrl.runs import (
    History,
    first_not_finite,
    interrupt_between_steps,
    load_checkpoint,
    reproducible,
    save_checkpoint,
)
from tokrl.training import FitConfig, fit, lm

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def float64():
    yield reproducible(0)
    torch.set_default_dtype(torch.float32)


def texts(count=50):
    coins = torch.randint(4, 6, (count, 6), generator=torch.Generator().manual_seed(5))
    return [[1, *row, 2] for row in coins.tolist()]


def new(kind="transformer", vocab_size=6, width=8):
    if kind == "hf-gpt2":  # its dropout draws from torch's own generator
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=vocab_size, n_embd=width, n_layer=1, n_head=2, n_positions=8,
            bos_token_id=1, eos_token_id=2, embd_pdrop=0.2,
        )  # fmt: skip
        torch.manual_seed(3)
        return models.from_hf(GPT2LMHeadModel(config)).train()
    generator = torch.Generator().manual_seed(3)
    return models.build(kind, vocab_size, generator, width=width, layers=1)


CONFIG = FitConfig(steps=10, batch_size=16, eval_every=3, checkpoint_every=5)


def run(model, folder=None, resume=False, config=CONFIG, seed=1, **options):
    """A fit on 50 texts of which a pass takes 3.1 batches: the queue carries over."""
    options = {"ids": texts(), "held_out": texts(8), **options}
    generator = torch.Generator().manual_seed(seed)
    return fit(
        model, config=config, generator=generator, folder=folder, resume=resume,
        **options,
    )  # fmt: skip


def stop_after(monkeypatch, step, error=RuntimeError):
    """The power fails in the update that follows `step` updates."""
    calls, real = [0], lm.cross_entropy

    def failing(*arguments):
        if torch.is_grad_enabled():
            calls[0] += 1
            if calls[0] > step:
                raise error
        return real(*arguments)

    monkeypatch.setattr(lm, "cross_entropy", failing)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))  # noqa: B905


def logged(folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


# Exact resume


@pytest.mark.parametrize("kind", ["transformer", "gru", "hf-gpt2"])
@pytest.mark.parametrize("stop", [5, 7])
def test_a_run_in_two_parts_is_the_run_in_one(tmp_path, monkeypatch, kind, stop):
    whole = new(kind)
    expected = run(whole)
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(RuntimeError):
            run(new(kind), tmp_path)
    assert len(logged(tmp_path)) == stop
    # Another start and another seed: all of it comes from the checkpoint.
    second = new(kind)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.normal_()
    torch.manual_seed(99)
    history = run(second, tmp_path, resume=True, seed=42)
    assert equal(whole, second)
    assert history.rows == expected.rows == logged(tmp_path)
    assert [row["step"] for row in history.rows] == list(range(1, 11))


def test_storing_a_run_changes_nothing_in_it(tmp_path):
    plain, stored = new(), new()
    assert run(plain).rows == run(stored, tmp_path).rows
    assert equal(plain, stored)
    about = json.loads((tmp_path / "config.json").read_text())
    assert FitConfig(**about["config"]) == CONFIG
    assert about["data"]["vocab_size"] == 6
    assert about["data"]["ids"].startswith("50 texts, 400 tokens, sha256 ")
    names = {"config.json", "log.jsonl", "checkpoint.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_without_a_generator_torchs_own_is_restored(tmp_path, monkeypatch):
    def part(model, resume=False):
        return fit(model, texts(), CONFIG, folder=tmp_path, resume=resume)

    torch.manual_seed(7)
    whole = new()
    expected = fit(whole, texts(), CONFIG)
    torch.manual_seed(7)
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        with pytest.raises(RuntimeError):
            part(new())
    second = new()
    torch.manual_seed(8)
    assert part(second, resume=True).rows == expected.rows
    assert equal(whole, second)


def test_a_finished_run_is_only_read_again(tmp_path):
    whole = new()
    expected = run(whole, tmp_path)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    again = models.build("transformer", 6, width=8, layers=1)
    assert run(again, tmp_path, resume=True).rows == expected.rows
    assert equal(whole, again)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_a_run_that_never_saved_starts_anew(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(RuntimeError):
            run(new(), tmp_path)
    assert len(logged(tmp_path)) == 3
    assert run(new(), tmp_path, resume=True).rows == run(new()).rows == logged(tmp_path)


CHILD = """
import os, sys, torch
sys.path.insert(0, os.path.join(sys.argv[1], "tests"))
from test_checkpoint import CONFIG, new, run, texts
from tokrl.runs import reproducible
from tokrl.training import lm
reproducible(0)
real, calls = lm.cross_entropy, 0
def slow(*arguments):
    global calls
    calls += torch.is_grad_enabled()
    if calls > 7:
        print("ready", flush=True)
        import time; time.sleep(60)
    return real(*arguments)
lm.cross_entropy = slow
run(new(), sys.argv[2])
"""


def started(folder):
    """A run in another process, in its eighth update."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(ROOT), str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    )  # fmt: skip
    assert child.stdout.readline() == b"ready\n", child.stderr.read()
    return child


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
def test_a_killed_process_loses_what_followed_its_checkpoint_only(tmp_path):
    child = started(tmp_path)
    child.kill()
    child.wait(30)
    child.stdout.close()
    child.stderr.close()
    assert child.returncode == -signal.SIGKILL
    assert len(logged(tmp_path)) == 7
    half = tmp_path / ".checkpoint.safetensors.half"
    half.write_bytes(b"killed while it wrote")
    whole, second = new(), models.build("transformer", 6, width=8, layers=1)
    expected = run(whole)
    history = run(second, tmp_path, resume=True, seed=42)
    assert equal(whole, second)
    assert history.rows == expected.rows == logged(tmp_path)
    assert not half.exists()


# Ctrl-C


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
def test_ctrl_c_finishes_the_step_and_saves(tmp_path, monkeypatch):
    whole, first, second = new(), new(), new()
    expected = run(whole)
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        calls, real = [0], lm.cross_entropy

        def press(*arguments):
            calls[0] += 1
            if calls[0] == 2:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
            return real(*arguments)

        patch.setattr(lm, "cross_entropy", press)
        with pytest.raises(KeyboardInterrupt):
            run(first, tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    assert [row["step"] for row in logged(tmp_path)] == [1, 2]
    assert load_checkpoint(tmp_path / "checkpoint.safetensors")["more"]["step"] == 2
    assert run(second, tmp_path, resume=True).rows == expected.rows
    assert equal(whole, second)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
def test_ctrl_c_twice_interrupts_at_once():
    def press():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

    with interrupt_between_steps() as interrupted:
        assert not interrupted()
        press()
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            press()


# What does not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": FitConfig(steps=11, batch_size=16, eval_every=3)}, "steps=10.*11"),
        (
            {"config": FitConfig(**{**vars(CONFIG), "learning_rate": 1e-3})},
            r"learning_rate=0\.003, this run has learning_rate=0\.001",
        ),
        ({"ids": texts(49)}, r"ids='50 texts.*ids='49 texts"),
        ({"ids": [[1, 4, 2], *texts()[1:]]}, "ids='50 texts.*ids='50 texts"),
        ({"held_out": None}, "held_out='8 texts.*held_out=None"),
        ({"model": {"vocab_size": 7}}, "vocab_size=6, this run has vocab_size=7"),
        ({"model": {"width": 16}}, r"token_embedding\.weight: \(6, 8\).*\(6, 16\)"),
        ({"model": {"kind": "gru"}}, r"blocks\.0.*|cells\."),
    ],
)
def test_a_run_is_resumed_with_what_it_was_started_with(tmp_path, change, message):
    run(new(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    options = {key: value for key, value in change.items() if key != "model"}
    with pytest.raises(ValueError, match=message):
        run(new(**change.get("model", {})), tmp_path, resume=True, **options)
    assert before == {p: p.read_bytes() for p in tmp_path.glob("*.safetensors")}
    assert len(logged(tmp_path)) == 10


def test_how_often_a_run_saves_may_change(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(RuntimeError):
            run(new(), tmp_path)
    config = FitConfig(**{**vars(CONFIG), "checkpoint_every": 1})
    assert run(new(), tmp_path, resume=True, config=config).rows == run(new()).rows


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    run(new(), tmp_path)
    with pytest.raises(ValueError, match="holds a run already: give resume=True"):
        run(new(), tmp_path)
    with pytest.raises(ValueError, match="resume=True without a folder"):
        run(new(), None, resume=True)


# Numbers that are not finite


def test_a_gradient_that_is_not_finite_is_named_and_spares_the_model(tmp_path):
    model, calls = new(), [0]

    def spoil(gradient):
        calls[0] += 1
        return gradient * (torch.inf if calls[0] == 8 else 1)

    model.blocks[0].up.weight.register_hook(spoil)
    with pytest.raises(FloatingPointError, match=r"step 8.*blocks\.0\.up\.weight"):
        run(model, tmp_path)
    assert first_not_finite(model.named_parameters()) is None
    good = load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert good["more"]["step"] == 5
    second = new()
    assert run(second, tmp_path, resume=True).rows == run(new()).rows


def test_a_checkpoint_never_holds_a_number_that_is_not_finite(tmp_path, monkeypatch):
    model, calls, step = new(), [0], torch.optim.AdamW.step

    def overflow(optimizer):
        step(optimizer)
        calls[0] += 1
        if calls[0] == 10:
            model.norm.weight.data[3] = torch.nan

    monkeypatch.setattr(torch.optim.AdamW, "step", overflow)
    with pytest.raises(FloatingPointError, match=r"step 10.*norm\.weight"):
        run(model, tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint.safetensors")["more"]["step"] == 5


# The file


def nested():
    return {
        "numbers": [1, 0.1, -1e-300, None, True, "四"],
        "by number": {0: torch.arange(3), 7: {"a": torch.tensor(2.5)}},
        "pair": (1, torch.zeros(2, 0)),
        "types": [
            torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
            torch.tensor([[True, False]]),
            torch.arange(6.0).view(2, 3).T,
        ],
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_a_checkpoint_gives_back_what_it_was_given(tmp_path):
    path = tmp_path / "c.safetensors"
    state = nested()
    save_checkpoint(path, state)
    assert same(state, load_checkpoint(path))
    shared = torch.ones(3)
    save_checkpoint(path, [shared, shared[:2]])
    assert same([shared, shared[:2]], load_checkpoint(path))
    with pytest.raises(TypeError):
        save_checkpoint(path, {"no": object()})
    assert same([shared, shared[:2]], load_checkpoint(path)), "the old one is intact"


def test_damage_of_any_kind_is_refused_by_name(tmp_path):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, nested())
    whole = path.read_bytes()
    for size in (0, 4, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"c\.safetensors is not a whole"):
            load_checkpoint(path)
    for position in range(0, len(whole), 7):  # one wrong bit, anywhere
        spoilt = bytearray(whole)
        spoilt[position] ^= 1
        path.write_bytes(spoilt)
        try:
            state = load_checkpoint(path)
        except ValueError as error:
            assert "c.safetensors" in str(error)  # noqa: PT017
        else:
            assert same(state, nested()), f"byte {position}"


def test_other_files_are_no_checkpoints(tmp_path):
    model = tmp_path / "model.safetensors"
    models.save(new(), model)
    with pytest.raises(ValueError, match=r"model\.safetensors.*no checkpoint"):
        load_checkpoint(model)
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        load_checkpoint(tmp_path / "none.safetensors")


def test_a_run_with_a_damaged_checkpoint_says_what_to_do(tmp_path):
    run(new(), tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors.*remove it and"):
        run(new(), tmp_path, resume=True)


def test_what_cannot_be_read_back_is_not_written(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, {"step": 1})
    for state in ({"w": {(1, 2): torch.ones(1)}}, {"w": {1, 2}}):
        with pytest.raises(TypeError):
            save_checkpoint(path, state)
        assert load_checkpoint(path) == {"step": 1}
    for state in ({"__tensor__": 1}, {"__pairs__": [3]}, {None: 1, 2: "two", 0.5: []}):
        save_checkpoint(path, {"inside": state})
        assert load_checkpoint(path) == {"inside": state}


def test_files_are_as_readable_as_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    save_checkpoint(tmp_path / "checkpoint.safetensors", {})
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_without_its_checkpoint_a_run_still_knows_its_settings(tmp_path):
    run(new(), tmp_path)
    (tmp_path / "checkpoint.safetensors").unlink()
    log = logged(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json was made with learning_rate="):
        run(new(), tmp_path, resume=True, config=replace(CONFIG, learning_rate=1.0))
    assert logged(tmp_path) == log
    run(new(), tmp_path, resume=True)
    assert logged(tmp_path) == log


def test_a_log_is_cut_back_to_the_rows_it_is_given(tmp_path):
    path = tmp_path / "log.jsonl"
    history = History(path)
    for step in (1, 2, 3):
        history.add(step, loss=step)
    history = History(path, history.rows[:2])
    history.add(3, loss=30)
    assert history["loss"] == [1, 2, 30]
    assert logged(tmp_path) == history.rows
