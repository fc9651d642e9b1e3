"""How town-translator was made, from nothing: imitation of the world's sentences.

Minutes on one core. Section 6.2 starts from a far smaller imitation of its own and
reinforces that; this one has seen so many pairs that little is left to reinforce.
"""

import json
from pathlib import Path
from typing import Any

import torch

from tokrl import metrics, models
from tokrl.apps import translation
from tokrl.pretrained.folder import write_small
from tokrl.tokenizers import Tokenizer
from tokrl.training import FitConfig, fit
from tokrl.world import World

CONFIG = FitConfig(
    steps=6000, batch_size=64, bucket=16, optimizer="muon", learning_rate=3e-3,
    warmup=0.03, eval_every=0,
)  # fmt: skip
SHAPE = {"width": 64, "layers": 3, "heads": 4, "max_length": 64}
PAIRS, HELD_OUT = 40_000, 1000
CARD = """# town-translator

A Transformer of {parameters:,} numbers that translates sentences of a small world from
English to Chinese and back, token by token, a token for each word and mark.

- world: the default one of `tokrl.world.World`; sentences as `tokrl.apps.translation`
  takes them from its stories, one at a time
- data: {pairs:,} different sentences of which none has a person and a thing together
  that the world's split keeps apart, each in both directions; no other text
- training: imitation, {steps:,} steps of {batch} texts, {tokens:,} tokens; Muon for
  matrices inside, else AdamW, float32
- vocabulary: {vocabulary}, both languages together
- made by: `python -m tokrl.pretrained.make translator`, on one core in some minutes
- licence: MIT, as the package

## Measured

On {held_out} sentences of each part, in both directions, the likeliest token taken each
time: exact match (a share), BLEU and chrF (0 to 100, sacrebleu {sacrebleu}; Chinese in
characters for BLEU). The sentences of *train* are others than those trained on; each of
*test* has a person and a thing together that never met in training. The world's own
translation has exact match 1.

```json
{measured}
```

## Limits

It knows eight people, eight places and sixteen things, and no text but the sentences
that its world tells. Sentences with `they` are not among them. Without a day, somebody
being somewhere or having something is taken for today.
"""


def make(
    folder: Path,
    generator: torch.Generator,
    config: FitConfig = CONFIG,
    pairs: int = PAIRS,
    held_out: int = HELD_OUT,
) -> None:
    """Train, measure and write the model; the folder is replaced when all is done.

    generator  decides the sentences, the weights and the order
    pairs      different sentences to learn from
    held_out   sentences to measure on, of each part
    """
    torch.set_num_threads(1)
    world = World.default()
    tokenizer = translation.make_tokenizer(world)
    apart = {
        part: translation.sample_sentences(world, held_out, generator, part)
        for part in ("train", "test")
    }
    sentences = translation.sample_sentences(
        world, pairs, generator, "train", without=apart["train"]
    )
    texts = translation.encode(sentences, tokenizer)
    model = models.build("transformer", len(tokenizer), generator, **SHAPE)
    history = fit(model, texts, config, generator=generator)
    measured = {part: measure(model, tokenizer, found) for part, found in apart.items()}
    card = CARD.format(
        parameters=models.num_parameters(model), pairs=len(sentences),
        steps=config.steps, batch=config.batch_size, vocabulary=len(tokenizer),
        tokens=int(history.last("tokens")), held_out=held_out,
        sacrebleu=metrics.sacrebleu.__version__,
        measured=json.dumps(measured, indent=1),
    )  # fmt: skip
    write_small(folder, {"model": model}, tokenizer, world, measured, card)


def measure(
    model: models.LanguageModel,
    tokenizer: Tokenizer,
    sentences: list[translation.Sentence],
) -> dict[str, dict[str, Any]]:
    """Exact match, BLEU and chrF of the greedy translations, by direction."""
    found = {}
    for source, target in translation.DIRECTIONS:
        result = translation.examine(model, tokenizer, sentences, [(source, target)])
        found[f"{source} to {target}"] = {
            "exact match": round(result.exact, 3),
            "BLEU": round(result.bleu, 1),
            "chrF": round(result.chrf, 1),
        }
    return found
