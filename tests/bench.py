"""Benchmarks: ours beside a well-known library, in the same run.

    python tests/bench.py --out _build/bench.json [NAME ...]

Ours and theirs take turns, several times; what counts is CPU time on one thread, so
that other programs on the machine disturb little; with two threads it is the time on
the clock. A ratio below 1 means that ours takes less time. What no library does is
measured alone. A benchmark is a function that yields `Case`s; `BENCHMARKS` names them.
"""

import argparse
import copy
import gc
import importlib.metadata
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

# Before the libraries are loaded: they read it then.
os.environ.update(
    OMP_NUM_THREADS="1",
    RAYON_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
)

import nbformat
import torch
import torch.nn.functional as F
from corpora import many_words, stories
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tokrl import pretrained
from tokrl.models import Transformer, build, num_parameters, to_gpt2
from tokrl.models.linear import linear
from tokrl.rollout import collect
from tokrl.runs import reproducible, write_json
from tokrl.sampling import generate
from tokrl.scoring import token_logprobs
from tokrl.tokenizers import (
    SPECIAL_TOKENS,
    BPETokenizer,
    WordPieceTokenizer,
    WordTokenizer,
)
from tokrl.training import PolicyConfig
from tokrl.training.experience import pay_kl, prepare
from tokrl.training.policy import Learner
from tokrl.world import World

Run = Callable[[], object]


class Case(NamedTuple):
    """One comparison.

    name    what is measured
    ours    prepares a run of ours, outside the measured time, and returns it
    theirs  the same for the library; None if there is none
    same    tells from what both runs return whether they did the same
    goal    the ratio, or the seconds of ours alone, that it should stay under
    work    tells from what a run of ours returns how many sums and products the matrix
            products in it take that nobody can do without: no padding, a prompt once
    threads of both; with more than one it is the time on the clock that is measured
    """

    name: str
    ours: Callable[[], Run]
    theirs: Callable[[], Run] | None = None
    same: Callable[[Any, Any], bool] | None = None
    goal: float | None = None
    work: Callable[[Any], float] | None = None
    threads: int = 1


def measure(case: Case, repetitions: int) -> dict:
    """Seconds of ours and of theirs, taking turns, and the ratio of medians."""
    torch.set_num_threads(case.threads)
    now = time.process_time if case.threads == 1 else time.perf_counter
    sides = ["ours", "theirs"] if case.theirs else ["ours"]
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(repetitions):
        results = {}
        for side in sides if turn % 2 == 0 else reversed(sides):
            run = getattr(case, side)()
            gc.collect()  # what was made before is not this run's to clear away
            start = now()
            results[side] = run()
            seconds[side].append(now() - start)
        if case.same and not case.same(results["ours"], results["theirs"]):
            raise AssertionError(f"{case.name}: the results of ours and theirs differ")
    row = {"name": case.name, "threads": case.threads, "goal": case.goal}
    for side in sides:
        row[f"{side}_seconds"] = seconds[side]
        row[f"{side}_median"] = statistics.median(seconds[side])
    if case.theirs:
        row["ratio"] = row["ours_median"] / row["theirs_median"]
    if case.work:
        rate = case.work(results["ours"]) / seconds["ours"][-1]
        row["share_of_peak"] = rate / matrix_peak(case.threads)
    return row


@cache
def matrix_peak(threads: int) -> float:
    """Sums and products a second of a large product of float32 matrices, measured."""
    torch.set_num_threads(threads)
    one = torch.randn(1024, 1024)
    ways = [torch.mm, linear]
    for product in ways:
        product(one, one)
    best = math.inf
    for product in ways * 5:
        start = time.perf_counter()
        for _ in range(3):
            product(one, one)
        best = min(best, time.perf_counter() - start)
    return 3 * 2 * 1024**3 / best


def machine() -> dict:
    """What the numbers depend on; nothing that names the machine or its user."""
    processor = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    processor = line.partition(":")[2].strip()
                    break
    packages = ("numpy", "regex", "tokenizers", "torch", "transformers")
    return {
        "processor": processor,
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "matrix_gflops": [round(matrix_peak(threads) / 1e9, 1) for threads in (1, 2)],
        **{name: importlib.metadata.version(name) for name in packages},
    }


# --- tokenizers -----------------------------------------------------------------------

CORPORA = {
    "world, English": partial(stories, "en"),
    "world, Chinese": partial(stories, "zh"),
    "20,000 distinct words": many_words,
}


def train_library(kind: str, texts: tuple[str, ...], vocab_size: int) -> Tokenizer:
    options = {"special_tokens": list(SPECIAL_TOKENS), "show_progress": False}
    if kind == "bpe":
        theirs = Tokenizer(models.BPE())
        theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, initial_alphabet=alphabet, **options
        )
    else:
        theirs = Tokenizer(models.WordPiece(unk_token="<unk>"))
        theirs.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, **options)
    theirs.train_from_iterator(texts, trainer)
    return theirs


def training(cls: type, texts: tuple[str, ...], vocab_size: int) -> dict:
    """The two sides of a case that trains a tokenizer."""
    return {
        "ours": lambda: partial(cls.train, texts, vocab_size),
        "theirs": lambda: partial(train_library, cls.kind, texts, vocab_size),
    }


def encoding(
    ours: BPETokenizer | WordPieceTokenizer,
    texts: tuple[str, ...],
    method: str = "encode_batch",
    again: bool = False,
) -> dict:
    """The two sides of a case that encodes texts, with empty caches or `again`."""
    stored = ours.to_hf().backend_tokenizer.to_str()

    def encode_all():
        return [ours.encode(text) for text in texts]

    def prepare_ours():
        ours._cache.clear()
        if again:
            encode_all()
        return encode_all

    def prepare_theirs():
        encode = getattr(Tokenizer.from_str(stored), method)
        if again:
            encode(texts)
        return partial(encode, texts)

    def same(ids, encodings):
        return ids == [encoding.ids for encoding in encodings]

    return {"ours": prepare_ours, "theirs": prepare_theirs, "same": same}


def same_merges(ours: BPETokenizer, theirs: Tokenizer) -> bool:
    merges = json.loads(theirs.to_str())["model"]["merges"]
    return ours.merges == [tuple(pair) for pair in merges]


def bpe() -> Iterator[Case]:
    """Byte-level BPE; `encode_batch` also finds the offsets of tokens in the text."""
    sizes = {"world, English": (2_000, 1), "world, Chinese": (2_000, None),
             "20,000 distinct words": (2_000, 3)}  # fmt: skip
    for corpus, (vocab_size, goal) in sizes.items():
        sides = training(BPETokenizer, CORPORA[corpus](), vocab_size)
        yield Case(f"train {vocab_size:,}: {corpus}", **sides, same=same_merges,
                   goal=goal)  # fmt: skip
    sides = training(BPETokenizer, many_words(), 10_000)
    yield Case("train 10,000: 20,000 distinct words", **sides, same=same_merges)
    for corpus, read in CORPORA.items():
        texts = read()
        ours = BPETokenizer.train(texts, 2_000)
        goal = 1 if corpus == "world, English" else None
        yield Case(f"encode, first time: {corpus}", **encoding(ours, texts), goal=goal)
        sides = encoding(ours, texts, again=True)
        yield Case(f"encode, again: {corpus}", **sides, goal=goal)
        sides = encoding(ours, texts, "encode_batch_fast", again=True)
        yield Case(f"encode, again, no offsets: {corpus}", **sides)


def wordpiece() -> Iterator[Case]:
    """WordPiece; the library's training is another one, by count (see the class)."""
    for corpus in ("world, English", "20,000 distinct words"):
        sides = training(WordPieceTokenizer, CORPORA[corpus](), 2_000)
        yield Case(f"train 2,000: {corpus}", **sides)
    for corpus, read in CORPORA.items():
        texts = read()
        ours = WordPieceTokenizer.train(texts, 2_000)
        yield Case(f"encode, first time: {corpus}", **encoding(ours, texts))
        yield Case(f"encode, again: {corpus}", **encoding(ours, texts, again=True))


# --- the world ------------------------------------------------------------------------


def world() -> Iterator[Case]:
    """What the world takes: 5,000 stories, and 1,000 next-word distributions."""
    default = World.default()

    def tell() -> Run:
        generator = torch.Generator().manual_seed(0)
        return partial(default.sample_stories, 5_000, generator)

    tell()()  # clauses are kept from story to story
    yield Case("tell 5,000 stories", tell, goal=1)
    for lang in ("en", "zh"):
        prefixes = []
        for story in default.sample_stories(40, torch.Generator().manual_seed(1)):
            words = story.words(lang)
            prefixes += [words[:i] for i in range(len(words))]

        def ask(prefixes=prefixes[:1_000], lang=lang) -> Run:
            fresh = World.default()  # one that has read nothing yet
            return lambda: [fresh.next_word_probs(p, lang) for p in prefixes]

        yield Case(f"1,000 next-word distributions: {lang}", ask, goal=2)


# --- models ---------------------------------------------------------------------------

STEPS = 2  # in a measured run, so that one is not too short to measure


def training_step(
    model: torch.nn.Module, ids: torch.Tensor, logits: Callable[[Any], torch.Tensor]
) -> Run:
    """A run of forward, cross-entropy and backward; it returns the loss."""

    def run() -> float:
        for _ in range(STEPS):
            model.zero_grad()
            scores = logits(model(ids[:, :-1]))
            loss = F.cross_entropy(scores.flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
        return loss.item()

    run()  # the first run of a shape sets things up
    return run


def transformer() -> Iterator[Case]:
    """Training our Transformer beside GPT2LMHeadModel: the same weights, float32."""
    torch.set_num_threads(1)
    vocab_size = 500
    for width, layers, batch, length in (
        (64, 2, 32, 64), (128, 4, 32, 64), (128, 4, 8, 256),
    ):  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        ours = build("transformer", vocab_size, generator, width=width, layers=layers)
        theirs = to_gpt2(ours, use_cache=False)
        ids = torch.randint(vocab_size, (batch, length + 1), generator=generator)
        yield Case(
            f"train D{width} L{layers}: {batch} x {length} tokens",
            partial(training_step, ours, ids, lambda out: out[0]),
            partial(training_step, theirs, ids, lambda out: out.logits),
            same=lambda a, b: abs(a - b) < 1e-4,
            goal=1,
        )


# --- sampling and policy optimisation ------------------------------------------------

# Eight prompts of 24 tokens, eight completions each, of at most 32 tokens.
PROMPTS, GROUP, PROMPT, LONGEST, VOCABULARY = 8, 8, 24, 32, 500
ROWS = PROMPTS * GROUP
EOS = 2


def policy_model(width: int, layers: int, ending: float) -> Transformer:
    """A model with random weights whose score for the end token is about `ending`.

    The last norm gives every state the same part along one direction, which the end
    token alone can see. -40: no text ends; 5: one does after some 7 tokens.
    """
    generator = torch.Generator().manual_seed(0)
    model = build("transformer", VOCABULARY, generator, width=width, layers=layers)
    along = torch.randn(width, generator=generator)
    along /= along.norm()
    with torch.no_grad():
        words = model.token_embedding.weight
        words -= (words @ along)[:, None] * along
        words[EOS] = ending / 20 * along
        model.norm.bias += 20 * along
    return model


def multiplications(model: Transformer) -> float:
    """How many sums and products of matrices it takes to read a token, and score it."""
    return 2 * (num_parameters(model) - model.position_embedding.weight.numel())


def sampling() -> Iterator[Case]:
    """Sampling beside `generate` of GPT2LMHeadModel: the same weights, float32."""
    for width, layers, goal in ((64, 2, 1 / 4), (128, 4, 1 / 3)):
        model = policy_model(width, layers, -40)
        draws = torch.Generator().manual_seed(1)
        ids = torch.randint(3, VOCABULARY, (PROMPTS, PROMPT), generator=draws)
        ids = ids.repeat_interleave(GROUP, 0)
        mask = torch.ones_like(ids)
        ours = partial(generate, model, ids, mask, LONGEST, eos_id=EOS, generator=draws)
        # Its static cache is no faster here than the one it takes by default.
        theirs = partial(
            to_gpt2(model).generate, ids, attention_mask=mask, do_sample=True, top_k=0,
            max_new_tokens=LONGEST, eos_token_id=EOS, pad_token_id=0,
        )  # fmt: skip

        def same(a, b):
            return a[0].shape == (ROWS, LONGEST) and b.shape[1] == PROMPT + LONGEST

        def work(_, model=model):
            tokens = PROMPTS * PROMPT + ROWS * (LONGEST - 1)
            return tokens * multiplications(model)

        for run in (ours, theirs):
            run()
        name = f"D{width} L{layers}: {ROWS} x {LONGEST} tokens"
        yield Case(name, lambda f=ours: f, lambda f=theirs: f, same, goal, work, 2)


def even(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward for both: the share of even ids."""
    return [sum(i % 2 == 0 for i in ids) / len(ids) for ids in completion_ids]


def our_step(
    model: Transformer, tokenizer: WordTokenizer, prompts: list[str], kl_coef: float
) -> Callable[[], torch.Tensor]:
    """What a step of `train_policy` does; it returns the lengths."""
    config = PolicyConfig.of(
        "grpo", prompts_per_step=PROMPTS, group_size=GROUP, max_new_tokens=LONGEST,
        kl_coef=kl_coef, learning_rate=1e-6,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    reference = copy.deepcopy(model)
    learner = Learner(model, None, config)

    def run() -> torch.Tensor:
        rollout = collect(
            model, prompts, even, tokenizer, LONGEST, GROUP, generator=generator
        )
        ref_logprobs = None
        if kl_coef:
            rollout, _, ref_logprobs = pay_kl(rollout, reference, config)
        experience = prepare(rollout, model, None, ref_logprobs, config)
        learner.learn(experience, generator, step=1)
        return rollout.lengths

    return run


def their_step(
    model: Transformer, tokenizer: WordTokenizer, prompts: list[str], kl_coef: float
) -> Callable[[], torch.Tensor]:
    """The same by TRL's GRPOTrainer: a training step of its own, clipped, taken."""
    from datasets import Dataset
    from transformers.utils import logging
    from trl import GRPOConfig, GRPOTrainer

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        policy = to_gpt2(model)
        policy.save_pretrained(folder)
        policy.config._name_or_path = folder  # where it looks for the reference
        config = GRPOConfig(
            folder, per_device_train_batch_size=ROWS, num_generations=GROUP,
            max_completion_length=LONGEST, max_steps=1, learning_rate=1e-6,
            beta=kl_coef, optim="adamw_torch_fused", use_cpu=True, bf16=False,
            gradient_checkpointing=False, report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        data = [{"prompt": prompt} for prompt in prompts]
        trainer = GRPOTrainer(
            policy, even, config, Dataset.from_list(data),
            processing_class=tokenizer.to_hf(),
        )  # fmt: skip
        trainer.train()  # one step, which sets all up
    batch = [row for row in data for _ in range(GROUP)]

    def run() -> torch.Tensor:
        trainer.training_step(trainer.model_wrapped, list(batch), None)
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        lengths = trainer._buffered_inputs[0]["completion_mask"].sum(-1)
        return lengths

    policy.train()
    return run


def policy() -> Iterator[Case]:
    """A step of policy optimisation beside TRL's GRPOTrainer: the same model, float32.

    From texts to a step of AdamW, one update for each batch. `ragged` texts end after
    some 7 tokens, and there is a KL to a reference, which is read as well.
    """
    words = [f"w{i}" for i in range(VOCABULARY - len(SPECIAL_TOKENS))]
    tokenizer = WordTokenizer.train([words], VOCABULARY)
    for width, layers, kl_coef, goal in (
        (64, 2, 0.0, 1 / 2.5), (128, 4, 0.0, 1 / 2.5),
        (64, 2, 0.04, 1 / 7), (128, 4, 0.04, 1 / 3.5),
    ):  # fmt: skip
        model = policy_model(width, layers, 5 if kl_coef else -40)
        draws = torch.Generator().manual_seed(2)
        drawn = torch.randint(len(words), (PROMPTS, PROMPT), generator=draws).tolist()
        theirs = their_step(
            model, tokenizer, [" ".join(words[i] for i in row) for row in drawn],
            kl_coef,
        )  # fmt: skip
        # Ours sets <bos> before a prompt: it gets a word less, and is as long.
        ours = our_step(
            model, tokenizer, [" ".join(words[i] for i in row[1:]) for row in drawn],
            kl_coef,
        )  # fmt: skip

        def same(a, b, ragged=bool(kl_coef)):
            means = a.double().mean(), b.double().mean()
            return max(means) < 2 * min(means) if ragged else min(means) == LONGEST

        def work(lengths, model=model, passes=5 if kl_coef else 4):
            # One to sample, three to learn, one by the reference; the last token of a
            # text is read by none.
            tokens = PROMPTS * PROMPT + float((lengths - 1).sum())
            return passes * tokens * multiplications(model)

        for run in (ours, theirs):
            run()
        kind = "ragged, KL" if kl_coef else "full length"
        name = f"step D{width} L{layers}: {kind}"
        yield Case(name, lambda f=ours: f, lambda f=theirs: f, same, goal, work, 2)


# --- the chapters ---------------------------------------------------------------------

PRACTICE = Path(__file__).parent.parent / "book/05-practice/rl.ipynb"


def practice() -> Iterator[Case]:
    """A sixth of a run of section 5.3, by the section's own cells: a minute a run."""
    from transformers import GPT2LMHeadModel

    given = {
        "copy": copy, "torch": torch, "token_logprobs": token_logprobs,
        "GPT2LMHeadModel": GPT2LMHeadModel, "path": pretrained.path("gpt2"),
        "generator": reproducible(seed=7),
    }  # fmt: skip
    cells = {cell.id: cell.source for cell in nbformat.read(PRACTICE, 4).cells}
    exec(cells["one"].split("prompt,")[0], given)  # the model
    for name in ("truth", "goal", "goal-base", "train-function"):
        with redirect_stdout(None):
            exec(cells[name], given)
    for method in ("rloo", "grpo", "ppo"):
        run = partial(given["train"], method, seed=1, steps=5)
        yield Case(f"{method}: 5 steps, float64", lambda f=run: f, goal=60 / 6)
    torch.set_default_dtype(torch.float32)


# --- all of them ----------------------------------------------------------------------

BENCHMARKS: dict[str, Callable[[], Iterator[Case]]] = {
    "bpe": bpe,
    "policy": policy,
    "practice": practice,
    "sampling": sampling,
    "transformer": transformer,
    "wordpiece": wordpiece,
    "world": world,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help=f"of {', '.join(BENCHMARKS)}; all if none")  # fmt: skip
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}")

    report = {"machine": machine(), "repetitions": options.repetitions, "results": {}}
    print(
        f"{'seconds, medians':<48}{'ours':>8}{'theirs':>8}{'ratio':>8}{'goal':>6}"
        f"{'of peak':>9}"
    )
    for name in options.names or BENCHMARKS:
        rows = report["results"][name] = []
        for case in BENCHMARKS[name]():
            row = measure(case, options.repetitions)
            rows.append(row)
            goal = "" if case.goal is None else f"{case.goal:.2g}"
            share = row.get("share_of_peak")
            share = "" if share is None else f"{share:.0%}"
            theirs = f"{row['theirs_median']:.3f}" if case.theirs else ""
            ratio = f"{row['ratio']:.2f}" if case.theirs else ""
            print(
                f"{name + ' ' + case.name:<48}{row['ours_median']:>8.3f}"
                f"{theirs:>8}{ratio:>8}{goal:>6}{share:>9}",
                flush=True,
            )
        if options.out:
            write_json(options.out, report)


if __name__ == "__main__":
    main()
