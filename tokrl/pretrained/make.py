"""How the pretrained models were made, from nothing: `python -m tokrl.pretrained.make`.

    python -m tokrl.pretrained.make gpt2
    python -m tokrl.pretrained.make bert
    python -m tokrl.pretrained.make writer        # or translator, or reader

The first two train on the training part of the default world, in English and Chinese,
for an hour or two on one core, and can be stopped and started again: they go on from
their checkpoint. The others, for chapter 6, take minutes, and are in modules of their
own. At the end each is measured against its world, and the folder that
`tokrl.pretrained.path` names is written, model card included.
"""

import argparse
import json
import math
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokrl import models
from tokrl.masking import pad, unpad
from tokrl.pretrained import FOLDER, NAMES
from tokrl.pretrained.folder import replacing, require_replaceable
from tokrl.runs import write_json
from tokrl.sampling import generate
from tokrl.tokenizers import SPECIAL_TOKENS, BPETokenizer, WordPieceTokenizer
from tokrl.training import FitConfig, evaluate, fit, mask_tokens
from tokrl.world import END, LANGUAGES, Story, World

if TYPE_CHECKING:  # slow to import, so each is imported where it is used
    from transformers import BertForMaskedLM, BertTokenizer

STORIES = {"gpt2": 1_000_000, "bert": 320_000}
HELD_OUT = 1_000
VOCABULARY_STORIES = 5_000
MAX_LENGTH = 256
SHAPE = {"width": 128, "layers": 4, "heads": 4}
CONFIGS = {
    "gpt2": FitConfig(steps=44_000, batch_size=32, bucket=50, optimizer="muon",
                      learning_rate=3e-3, warmup=0.02, eval_every=1000,
                      checkpoint_every=500),
    "bert": FitConfig(steps=10_000, batch_size=32, bucket=50, optimizer="muon",
                      learning_rate=3e-3, warmup=0.02, eval_every=1000,
                      checkpoint_every=500),
}  # fmt: skip
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BERT_MASK = BERT_SPECIAL.index("[MASK]")


@dataclass(frozen=True)
class Corpus:
    """What both models learn from and are measured on.

    stories    of the training part, with the language each is read in
    held_out   {part: stories} never trained on
    share      of all stories that belong to the training part, estimated
    """

    world: World
    stories: list[tuple[Story, str]]
    held_out: dict[str, list[Story]]
    share: float

    def nats(self, part: str) -> list[float]:
        """What the perfect model pays for each held-out story, language included.

        It knows that stories of the training part only are told; of the test part it
        is asked the unconditional probability, or it could not tell them at all.
        """
        told = math.log(self.share) if part == "train" else 0.0
        known = math.log(len(LANGUAGES)) + told
        return [known - story.log_prob for story in self.held_out[part]]

    def vocabulary_texts(self) -> list[str]:
        """What the tokenizers learn from: stories in both languages."""
        stories = [story for story, _ in self.stories[:VOCABULARY_STORIES]]
        return [story.text(lang) for story in stories for lang in LANGUAGES]

    def held_out_texts(self) -> list[str]:
        """What a run is evaluated on as it goes: 200 stories in both languages."""
        stories = self.held_out["train"][:200]
        return [story.text(lang) for story in stories for lang in LANGUAGES]


def make_corpus(count: int, generator: torch.Generator) -> Corpus:
    """Stories of the default world, each in one of the two languages by a fair coin.

    count  stories to train on; `HELD_OUT` more are drawn of each part of the split
    """
    world = World.default()
    stories = world.sample_stories(count, generator, part="train")
    coins = torch.randint(len(LANGUAGES), (count,), generator=generator).tolist()
    languages = [LANGUAGES[coin] for coin in coins]
    read = list(zip(stories, languages, strict=True))
    held_out = {
        part: world.sample_stories(HELD_OUT, generator, part=part)
        for part in ("train", "test")
    }
    drawn = world.sample_stories(50 * HELD_OUT, generator)
    share = sum(world.part(story) == "train" for story in drawn) / len(drawn)
    return Corpus(world, read, held_out, share)


# --- town-gpt2 ------------------------------------------------------------------------


def train_gpt2(
    corpus: Corpus, config: FitConfig, run: Path, generator: torch.Generator
) -> tuple[BPETokenizer, models.Transformer]:
    """The tokenizer and the model: our Transformer, which GPT-2's classes read.

    run  folder of the checkpoint, from which it goes on if there is one
    """
    tokenizer = BPETokenizer.train(corpus.vocabulary_texts(), vocab_size=1000)
    model = models.build(
        "transformer", len(tokenizer), generator, max_length=MAX_LENGTH, **SHAPE
    )
    ids = [encode_gpt2(tokenizer, story.text(lang)) for story, lang in corpus.stories]
    held_out = [encode_gpt2(tokenizer, text) for text in corpus.held_out_texts()]
    fit(model, ids, config, held_out, generator, run, resume=True)
    return tokenizer, model


def encode_gpt2(tokenizer: BPETokenizer, text: str) -> list[int]:
    """The ids of a text between `<bos>` and `<eos>`."""
    return [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]


def measure_gpt2(
    corpus: Corpus,
    tokenizer: BPETokenizer,
    model: models.Transformer,
    generator: torch.Generator,
) -> dict[str, Any]:
    """Nats per held-out story against the exact ones; possible stories it writes."""
    found = {}
    for part in corpus.held_out:
        exact = corpus.nats(part)
        for lang in LANGUAGES:
            texts = [
                encode_gpt2(tokenizer, story.text(lang))
                for story in corpus.held_out[part]
            ]
            excess = [
                evaluate(model, [text]) * (len(text) - 1) - nats
                for text, nats in zip(texts, exact, strict=True)
            ]
            mean = sum(excess) / len(excess)
            error = math.sqrt(sum((x - mean) ** 2 for x in excess)) / len(excess)
            floor = sum(exact) / len(exact)
            found[f"{part}, {lang}"] = {
                "floor, nats per story": round(floor, 3),
                "model, nats per story": round(floor + mean, 3),
                "above the floor, %": round(100 * mean / floor, 2),
                "standard error, %": round(100 * error / floor, 2),
            }
        above = [found[f"{part}, {lang}"]["above the floor, %"] for lang in LANGUAGES]
        found[f"{part}, both"] = {
            "above the floor, %": round(sum(above) / len(above), 2)
        }
    prompt = torch.full((HELD_OUT, 1), tokenizer.bos_id)
    ids, mask, _ = generate(
        model, prompt, torch.ones_like(prompt), 200, eos_id=tokenizer.eos_id,
        generator=generator,
    )  # fmt: skip
    possible = 0
    for row in unpad(ids, mask):
        text = tokenizer.decode(row)
        lang = "en" if text.isascii() else "zh"
        words = [
            *corpus.world.split(text, lang),
            *([END] if tokenizer.eos_id in row else []),
        ]
        possible += corpus.world.log_prob(words, lang) > -math.inf
    found["share of its stories that are possible"] = round(possible / HELD_OUT, 3)
    return found


def save_gpt2(folder: Path, tokenizer: BPETokenizer, model: models.Transformer) -> None:
    """The files that GPT-2's classes load, and ours (tokrl.json)."""
    from transformers import GPT2Tokenizer

    models.to_gpt2(model).save_pretrained(folder)
    names = dict(zip(("pad", "bos", "eos", "unk"), SPECIAL_TOKENS, strict=True))
    GPT2Tokenizer(
        vocab=tokenizer.vocab, merges=tokenizer.merges, model_max_length=MAX_LENGTH,
        **{f"{name}_token": token for name, token in names.items()},
    ).save_pretrained(folder)  # fmt: skip
    # What older versions of transformers read instead of tokenizer.json.
    write_json(folder / "vocab.json", tokenizer.vocab)
    merges = ["#version: 0.2", *map(" ".join, tokenizer.merges)]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    tokenizer.save(folder / "tokrl.json")


# --- town-bert ------------------------------------------------------------------------


def bert_vocabulary(texts: Iterable[str]) -> list[str]:
    """BERT's special tokens, our pieces of lower-case text, and all of ASCII.

    The letters and digits that the world never uses are there so that any English
    text has tokens.
    """
    trained = WordPieceTokenizer.train([text.lower() for text in texts], 400)
    pieces = list(trained.vocab)[len(SPECIAL_TOKENS) :]
    spelling = string.ascii_lowercase + string.digits
    ascii_pieces = [*spelling, *(f"##{c}" for c in spelling), *string.punctuation]
    more = [piece for piece in ascii_pieces if piece not in trained.vocab]
    return [*BERT_SPECIAL, *pieces, *more]


def bert_tokenizer(vocabulary: Sequence[str]) -> "BertTokenizer":
    """A tokenizer of these pieces, each with its position as its id."""
    from transformers import BertTokenizer

    return BertTokenizer(
        vocab={piece: i for i, piece in enumerate(vocabulary)},
        model_max_length=MAX_LENGTH,
    )


def masked_cross_entropy(
    model: "BertForMaskedLM",
    texts: Sequence[Sequence[int]],
    generator: torch.Generator,
) -> Tensor:
    """Mean negative log-prob, nats, of the tokens hidden by `mask_tokens`."""
    ids, mask = pad(texts, pad_id=0, side="right")
    specials = range(len(BERT_SPECIAL))
    inputs, labels = mask_tokens(
        ids, mask, BERT_MASK, model.config.vocab_size, generator, special_ids=specials
    )
    return model(input_ids=inputs, attention_mask=mask, labels=labels).loss


def train_bert(
    corpus: Corpus, config: FitConfig, run: Path, generator: torch.Generator
) -> tuple["BertTokenizer", "BertForMaskedLM"]:
    """The tokenizer and the model; arguments as of `train_gpt2`."""
    from transformers import BertConfig, BertForMaskedLM

    texts = [story.text(lang) for story, lang in corpus.stories]
    vocabulary = bert_vocabulary(corpus.vocabulary_texts())
    tokenizer = bert_tokenizer(vocabulary)
    torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(vocabulary), hidden_size=SHAPE["width"],
            num_hidden_layers=SHAPE["layers"], num_attention_heads=SHAPE["heads"],
            intermediate_size=4 * SHAPE["width"], max_position_embeddings=MAX_LENGTH,
            type_vocab_size=2, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0, pad_token_id=0,
            initializer_range=1 / math.sqrt(SHAPE["width"]),
        )
    )  # fmt: skip
    ids = []
    for start in range(0, len(texts), 10_000):  # at once they would fill the memory
        ids += tokenizer(texts[start : start + 10_000])["input_ids"]
    held_out = tokenizer(corpus.held_out_texts())["input_ids"]
    loss = partial(masked_cross_entropy, generator=generator)
    fit(model, ids, config, held_out, generator, run, resume=True, loss=loss)
    return tokenizer, model.eval()


def measure_bert(
    corpus: Corpus,
    tokenizer: "BertTokenizer",
    model: "BertForMaskedLM",
    generator: torch.Generator,
) -> dict[str, Any]:
    """Hidden tokens of held-out stories; one hidden word against the exact answer."""
    found = {}
    for part, stories in corpus.held_out.items():
        for lang in LANGUAGES:
            ids = tokenizer([story.text(lang) for story in stories])["input_ids"]
            loss = partial(masked_cross_entropy, generator=generator)
            nats = evaluate(model, ids, loss=loss)
            found[f"{part}, {lang}"] = {"nats per hidden token": round(nats, 4)}
    exact, paid = [], []
    stories = corpus.held_out["train"][:200]
    for story in stories:
        words = story.words("en")
        at = int(torch.randint(len(words) - 1, (), generator=generator))
        pieces = [tokenizer.tokenize(word) for word in words[:-1]]
        if len(pieces[at]) > 1:
            continue
        filled: dict[str, float] = {}
        for word in corpus.world.vocabulary("en"):
            log_prob = corpus.world.log_prob([*words[:at], word, *words[at + 1 :]])
            name = word.lower()
            filled[name] = filled.get(name, 0.0) + math.exp(log_prob)
        total = sum(filled.values())
        exact.append(-math.log(filled[words[at].lower()] / total))
        pieces[at] = [tokenizer.mask_token]
        row = ["[CLS]", *(piece for word in pieces for piece in word), "[SEP]"]
        ids = torch.tensor([tokenizer.convert_tokens_to_ids(row)])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
        target = tokenizer.convert_tokens_to_ids(words[at].lower())
        paid.append(-float(logprobs[row.index(tokenizer.mask_token), target]))
    words = max(1, len(paid))
    found["one hidden word, en"] = {
        "exact, nats": round(sum(exact) / words, 4),
        "model, nats": round(sum(paid) / words, 4),
        "words": len(paid),
    }
    return found


def save_bert(
    folder: Path, tokenizer: "BertTokenizer", model: "BertForMaskedLM"
) -> None:
    """The files that `BertModel`, `BertForMaskedLM` and `BertTokenizer` load."""
    from transformers import BertForPreTraining

    # BertModel also has a pooler, which a masked language model lacks: it is stored
    # as it starts, untrained, so that loading finds every weight.
    whole = BertForPreTraining(model.config)
    whole.bert.load_state_dict(model.bert.state_dict(), strict=False)
    whole.cls.predictions.load_state_dict(model.cls.predictions.state_dict())
    whole.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    vocab = tokenizer.get_vocab()
    lines = "".join(f"{piece}\n" for piece in sorted(vocab, key=vocab.get))
    (folder / "vocab.txt").write_text(lines, encoding="utf-8")


# --- both -----------------------------------------------------------------------------

CARD = """# {name}

{what}

- data: {stories:,} stories of the default world of `tokrl`, of the training part of its
  split, each in English or in Chinese by a fair coin; no other text
- training: {steps:,} steps of {batch} texts, {tokens:,} tokens; {optimizer}, float32
- parameters: {parameters:,}
- vocabulary: {vocabulary}
- made by: `python -m tokrl.pretrained.make {kind}`
- licence: MIT, as the package

## Measured

The floor is the exact surprise of the held-out stories, language included. The part
*test* has combinations of people and things that were never trained on.

```json
{measured}
```

## Limits

It knows eight people, eight places and sixteen things, and no text but the stories
that the world tells: of anything else it knows nothing. {limits}
"""
WHAT = {
    "gpt2": (
        "A `GPT2LMHeadModel` with byte-level BPE, trained to tell the stories of a "
        "small world in English and in Chinese.",
        "A text starts with `<bos>`, which the tokenizer does not add by itself.",
    ),
    "bert": (
        "A `BertModel` with WordPiece, lower-case, trained to find hidden words of the "
        "stories of a small world in English and in Chinese.",
        "Its pooler is untrained; there was no next-sentence task.",
    ),
}

PARTS = {
    "gpt2": (train_gpt2, measure_gpt2, save_gpt2),
    "bert": (train_bert, measure_bert, save_bert),
}
OPTIMIZER_NAMES = {"adamw": "AdamW", "muon": "Muon for matrices inside, else AdamW"}


def make(name: str, run: Path, out: Path, seed: int = 0) -> None:
    """Train, measure and write one model.

    name  gpt2 or bert
    run   folder of the training run; from a checkpoint in it, it goes on
    out   the model's folder, replaced as a whole when all is done
    """
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    config = CONFIGS[name]
    corpus = make_corpus(STORIES[name], generator)
    train, measure, save = PARTS[name]
    tokenizer, model = train(corpus, config, run, generator)
    draws = torch.Generator().manual_seed(seed + 1)
    measured = measure(corpus, tokenizer, model, draws)
    what, limits = WHAT[name]
    log = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    card = CARD.format(
        name=NAMES[name], what=what, limits=limits, kind=name, stories=STORIES[name],
        steps=config.steps, batch=config.batch_size,
        optimizer=OPTIMIZER_NAMES[config.optimizer],
        tokens=int(json.loads(log[-1])["tokens"]),
        parameters=models.num_parameters(model), vocabulary=len(tokenizer),
        measured=json.dumps(measured, indent=1),
    )  # fmt: skip
    with replacing(out) as made:
        save(made, tokenizer, model)
        (made / "README.md").write_text(card, encoding="utf-8")
        write_json(made / "measured.json", measured)
    print(card)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--run", type=Path, help="folder of the run: gpt2 and bert")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of the finished model, replaced at the end; without: where "
        "the package looks for it",
    )
    options = parser.parse_args()
    out = FOLDER / NAMES[options.name] if options.out is None else options.out
    try:
        require_replaceable(out)
    except ValueError as error:
        parser.error(f"--out: {error}")
    if options.name in PARTS:
        make(options.name, options.run or Path("_build/pretrained") / options.name, out)
    elif options.run:
        parser.error(f"--run: {options.name} keeps no checkpoint, as it takes minutes")
    else:
        small = import_module(f"tokrl.pretrained.make_{options.name}")
        small.make(out, torch.Generator().manual_seed(0))
        print((out / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
