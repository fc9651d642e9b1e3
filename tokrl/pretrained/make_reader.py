"""How town-reader was made, from nothing: imitation of hasty annotators, then RL.

About eight minutes on one core. Two models are kept: the one that imitates, which
section 6.3 reinforces, and the one that was reinforced, which answers questions.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokrl import models
from tokrl.apps import qa
from tokrl.masking import pad
from tokrl.pretrained.folder import write_small
from tokrl.tokenizers import Tokenizer
from tokrl.training import FitConfig, PolicyConfig, fit, train_policy
from tokrl.world import World

FIT = FitConfig(
    steps=8000, batch_size=64, bucket=8, optimizer="muon", learning_rate=4e-3,
    clip_grad=0.5, eval_every=0,
)  # fmt: skip
RL = PolicyConfig.of(
    "rloo", steps=400, prompts_per_step=32, group_size=8, learning_rate=5e-4,
    max_new_tokens=qa.LONGEST, clip_grad=0.5,
)  # fmt: skip
SHAPE = {"width": 64, "layers": 3, "heads": 2, "max_length": 96}
EXAMPLES, PROMPTS, HELD_OUT = 160_000, 12_000, 1000
BLOTTED, ASKED_BLOTTED, WRONG = 0.25, 0.4, 1.0
STORY_WEIGHT = 0.2
CARD = """# town-reader

Two Transformers of {parameters:,} numbers each that answer questions about short
stories, token by token, a token for each word and mark: `imitation.safetensors` as
annotators taught it, `model.safetensors` after reinforcement.

- world: `tokrl.apps.qa.READER`, stories of two people and one thing, one to three
  sentences after the scene; "where" and "who", at most two hops
- data of the imitation: {examples:,} questions about stories of the training part of
  the split. Where the answer had changed in the story, the annotator overlooked the
  last change in {hasty:.0%} of the cases, on purpose; {at_once:.0%} answered without
  a chain. In {blotted:.0%} a blot covers the answer: annotators draw a guess, and say
  "unknown" the more often the less sure their best guess is
- imitation: {steps:,} steps of {batch} texts; Muon for matrices inside, else AdamW,
  float32; a token of the story counts {weight} of one of the answer
- reinforcement: {rl_steps} steps of {rows} completions, RLOO; 1 for the right answer,
  0 for "unknown", -{wrong:g} for a wrong one; {asked:.0%} of the questions have
  a blot
- chosen: one of eight imitations tried in this world (layers, heads, steps, rate and
  labels differed), for how often a short reinforcement of it was right on questions
  of the part *test*, others than those measured below; two layers ended lower
- made by: `python -m tokrl.pretrained.make reader`, on one core in about eight minutes
- licence: MIT, as the package

## Measured

Shares of {held_out} held-out questions that were answered right, the likeliest token
taken each time. The part *test* has people and things together that never met in
training; *annotators* are the labels that were imitated. 0 hops: the story does not
say, and "unknown" is right.

```json
{measured}
```

## Limits

It knows four people, four places and four things, and no text but the stories that
its world tells, told in the present. It reads at most 96 tokens.
"""


def answer_loss(tokenizer: Tokenizer, story_weight: float):
    """Cross-entropy in which the tokens before "Steps:" or "Answer:" weigh less.

    story_weight  of a token of the story, against 1 for one of the answer
    """
    marks = torch.tensor([tokenizer.vocab[t[:-1]] for t in (qa.STEPS, qa.AT_ONCE)])

    def loss(model: nn.Module, texts: Sequence[Sequence[int]]) -> Tensor:
        ids, mask = pad(texts, side="right")
        logits, _ = model(ids[:, :-1])
        losses = F.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        marked = torch.isin(ids, marks).cumsum(-1) > 0
        told = F.pad(marked, (2, 0))[:, 1:-2]  # from two tokens after the mark on
        weights = mask[:, 1:] * torch.where(told, 1.0, story_weight)
        return (losses * weights.flatten()).sum() / weights.sum()

    return loss


def make(
    folder: Path,
    generator: torch.Generator,
    config: FitConfig = FIT,
    rl_config: PolicyConfig = RL,
    examples: int = EXAMPLES,
) -> None:
    """Train, measure and write both models; the folder is replaced when all is done.

    generator  decides the stories, the weights and all draws
    """
    torch.set_num_threads(1)
    world = World(qa.READER)
    tokenizer = qa.make_tokenizer(world)
    drawn = qa.make_examples(world, examples, generator, blotted=BLOTTED, part="train")
    written = qa.annotate(drawn, generator, **qa.ANNOTATORS)
    imitation = models.build("transformer", len(tokenizer), generator, **SHAPE)
    texts = [
        [tokenizer.bos_id, *tokenizer.encode(f"{a} {b}"), tokenizer.eos_id]
        for a, b in written
    ]
    loss = answer_loss(tokenizer, STORY_WEIGHT)
    fit(imitation, texts, config, generator=generator, loss=loss)
    reader = copy.deepcopy(imitation)
    drawn = qa.make_examples(
        world, PROMPTS, generator, blotted=ASKED_BLOTTED, part="train"
    )
    prompts = [example.prompt() for example in drawn]
    train_policy(
        reader, prompts, qa.AnswerReward(WRONG), rl_config, tokenizer, generator,
        columns=qa.columns(drawn),
    )  # fmt: skip
    measured = measure(world, tokenizer, imitation, reader, generator)
    card = CARD.format(
        parameters=models.num_parameters(reader), examples=examples,
        steps=config.steps, batch=config.batch_size, blotted=BLOTTED, wrong=WRONG,
        asked=ASKED_BLOTTED,
        weight=STORY_WEIGHT, rl_steps=rl_config.steps, held_out=HELD_OUT,
        rows=rl_config.prompts_per_step * rl_config.group_size,
        measured=json.dumps(measured, indent=1), **qa.ANNOTATORS,
    )  # fmt: skip
    kept = {"imitation": imitation, "model": reader}
    write_small(folder, kept, tokenizer, world, measured, card)


def measure(
    world: World,
    tokenizer: Tokenizer,
    imitation: models.LanguageModel,
    reader: models.LanguageModel,
    generator: torch.Generator,
) -> dict[str, dict[str, Any]]:
    """Accuracy of annotators and of both models, by part and number of hops."""
    found: dict[str, dict[str, Any]] = {}
    for part in ("train", "test"):
        asked = qa.make_examples(world, HELD_OUT, generator, part=part)
        prompts = [example.prompt() for example in asked]
        labels = qa.annotate(asked, generator, **{**qa.ANNOTATORS, "at_once": 0.0})
        replies = {
            "annotators": [qa.read(text) for _, text in labels],
            "imitation": qa.answer_all(imitation, tokenizer, prompts),
            "reinforced": qa.answer_all(reader, tokenizer, prompts),
        }
        for name, given in replies.items():
            result = qa.measure(asked, given)
            found[f"{name}, {part}"] = {
                "accuracy": round(result.accuracy, 3),
                **{f"{k} hops": round(v, 3) for k, v in result.by_hops.items()},
            }
    asked = qa.make_examples(world, HELD_OUT, generator, blotted=1.0)
    replies = qa.answer_all(reader, tokenizer, [e.prompt() for e in asked])
    silent = [
        (max(e.chances.values()), r.answer == qa.UNKNOWN)
        for e, r in zip(asked, replies, strict=True)
    ]
    least = qa.AnswerReward(WRONG).threshold
    found["reinforced, under a blot, says unknown"] = {
        name: round(sum(said for _, said in group) / len(group), 3)
        for name, group in (
            ("best guess below the threshold", [s for s in silent if s[0] < least]),
            ("best guess above the threshold", [s for s in silent if s[0] > least]),
        )
    }
    return found
