"""How town-writer was made, from nothing: a small imitation of stories, word by word.

Five minutes on one core. It is left where imitation leaves off: about a third of
its stories hold an error. Section 6.1 reinforces it.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch

from tokrl import models
from tokrl.apps.generation import WRITER, encode_story, examine, rest, scene, write
from tokrl.pretrained.folder import write_small
from tokrl.rewards import ValidityReward
from tokrl.tokenizers import WordTokenizer
from tokrl.training import FitConfig, evaluate, fit
from tokrl.world import World

CONFIG = FitConfig(
    steps=10_000, batch_size=32, bucket=20, optimizer="muon", learning_rate=3e-3,
    warmup=0.03, eval_every=0,
)  # fmt: skip
SHAPE = {"width": 64, "layers": 2, "heads": 4}
HELD_OUT = 500
CARD = """# town-writer

A Transformer of {parameters:,} numbers that tells stories of a small world in English,
token by token, a token for each word and mark. Made to be reinforced.

- world: `tokrl.apps.generation.WRITER`: the default world, with one thing in each story
  and two to four sentences after the scene
- data: {stories:,} stories of the training part of its split; no other text
- training: {steps:,} steps of {batch} texts, {tokens:,} tokens; Muon for matrices
  inside, else AdamW, float32
- vocabulary: {vocabulary}
- made by: `python -m tokrl.pretrained.make writer`, on one core in some minutes
- licence: MIT, as the package

## Measured

On {held_out} stories of each part of the split. The floor is their exact surprise; the
part *test* has combinations of people and things that were never trained on. A story
that the model writes after a scene counts as possible if it has no error.

```json
{measured}
```

## Limits

It knows eight people, eight places and sixteen things, and no text but the stories that
the world tells. It was trained to imitate, and about a third of its stories are false
or ungrammatical somewhere.
"""


def make(folder: Path, generator: torch.Generator, config: FitConfig = CONFIG) -> None:
    """Train, measure and write the model; the folder is replaced when all is done.

    generator  decides the stories, the weights and the order
    """
    torch.set_num_threads(1)
    world = World(WRITER)
    tokenizer = WordTokenizer.train([world.vocabulary()])
    texts = []
    for _ in range(config.steps):  # at once they would fill the memory
        stories = world.sample_stories(config.batch_size, generator, part="train")
        texts += [encode_story(story, tokenizer) for story in stories]
    model = models.build(
        "transformer", len(tokenizer), generator, max_length=world.max_words() + 1,
        **SHAPE,
    )  # fmt: skip
    history = fit(model, texts, config, generator=generator)
    measured = measure(model, tokenizer, world, generator)
    card = CARD.format(
        parameters=models.num_parameters(model), stories=len(texts),
        steps=config.steps, batch=config.batch_size, vocabulary=len(tokenizer),
        tokens=int(history.last("tokens")), held_out=HELD_OUT,
        measured=json.dumps(measured, indent=1),
    )  # fmt: skip
    write_small(folder, {"model": model}, tokenizer, world, measured, card)


def measure(
    model: models.LanguageModel,
    tokenizer: WordTokenizer,
    world: World,
    generator: torch.Generator,
) -> dict[str, dict[str, Any]]:
    """Cross-entropy against the floor, and the share of possible stories, by part."""
    judge, found = ValidityReward(world, tokenizer), {}
    drawn = world.sample_stories(20 * HELD_OUT, generator)
    share = sum(world.part(story) == "train" for story in drawn) / len(drawn)
    for part in ("train", "test"):
        stories = world.sample_stories(HELD_OUT, generator, part=part)
        # It was told stories of the training part only, and the floor knows that.
        told = math.log(share) if part == "train" else 0.0
        texts = [encode_story(story, tokenizer) for story in stories]
        floor = told - sum(story.log_prob for story in stories) / HELD_OUT
        tokens = sum(len(text) - 1 for text in texts) / HELD_OUT
        nats = evaluate(model, texts) * tokens
        prompts = [scene(story) for story in stories]
        made = examine(prompts, write(model, tokenizer, prompts, generator), judge)
        true = [len(rest(story, tokenizer)) for story in stories]
        found[part] = {
            "floor, nats per story": round(floor, 2),
            "model, nats per story": round(nats, 2),
            "share possible": round(made.valid, 3),
            "errors per 100 tokens": round(made.errors_per_100, 2),
            "tokens after the scene": round(made.length, 1),
            "tokens, true stories": round(sum(true) / HELD_OUT, 1),
        }
    return found
