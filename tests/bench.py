"""Benchmarks: ours beside a well-known library, in the same run, on one thread.

    python tests/bench.py --out _build/bench.json [NAME ...]

Ours and theirs take turns, several times; what counts is CPU time (of the process,
all its threads), so that other programs on the machine disturb little. A ratio below
1 means that ours takes less time. What no library does is measured alone. A benchmark
is a function that yields `Case`s; `BENCHMARKS` names them.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

# Before the libraries are loaded: they read it then.
os.environ.update(
    OMP_NUM_THREADS="1", RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false"
)

import torch
import torch.nn.functional as F
from corpora import many_words, stories
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tokrl.models import build, to_gpt2
from tokrl.runs import write_json
from tokrl.tokenizers import SPECIAL_TOKENS, BPETokenizer, WordPieceTokenizer
from tokrl.world import World

Run = Callable[[], object]


class Case(NamedTuple):
    """One comparison.

    name    what is measured
    ours    prepares a run of ours, outside the measured time, and returns it
    theirs  the same for the library; None if there is none
    same    tells from what both runs return whether they did the same
    goal    the ratio, or the seconds of ours alone, that it should stay under
    """

    name: str
    ours: Callable[[], Run]
    theirs: Callable[[], Run] | None = None
    same: Callable[[Any, Any], bool] | None = None
    goal: float | None = None


def measure(case: Case, repetitions: int) -> dict:
    """CPU seconds of ours and of theirs, taking turns, and the ratio of medians."""
    sides = ["ours", "theirs"] if case.theirs else ["ours"]
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(repetitions):
        results = {}
        for side in sides if turn % 2 == 0 else reversed(sides):
            run = getattr(case, side)()
            gc.collect()  # what was made before is not this run's to clear away
            start = time.process_time()
            results[side] = run()
            seconds[side].append(time.process_time() - start)
        if case.same and not case.same(results["ours"], results["theirs"]):
            raise AssertionError(f"{case.name}: the results of ours and theirs differ")
    row = {"name": case.name, "goal": case.goal}
    for side in sides:
        row[f"{side}_cpu_seconds"] = seconds[side]
        row[f"{side}_median"] = statistics.median(seconds[side])
    if case.theirs:
        row["ratio"] = row["ours_median"] / row["theirs_median"]
    return row


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
        "threads": 1,
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
            return lambda: [default.next_word_probs(p, lang) for p in prefixes]

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


# --- all of them ----------------------------------------------------------------------

BENCHMARKS: dict[str, Callable[[], Iterator[Case]]] = {
    "bpe": bpe,
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
        f"{'CPU seconds, medians':<48}{'ours':>8}{'theirs':>8}{'ratio':>8}{'goal':>6}"
    )
    for name in options.names or BENCHMARKS:
        rows = report["results"][name] = []
        for case in BENCHMARKS[name]():
            row = measure(case, options.repetitions)
            rows.append(row)
            goal = "" if case.goal is None else f"{case.goal:g}"
            theirs = f"{row['theirs_median']:.3f}" if case.theirs else ""
            ratio = f"{row['ratio']:.2f}" if case.theirs else ""
            print(
                f"{name + ' ' + case.name:<48}{row['ours_median']:>8.3f}"
                f"{theirs:>8}{ratio:>8}{goal:>6}",
                flush=True,
            )
        if options.out:
            write_json(options.out, report)


if __name__ == "__main__":
    main()
