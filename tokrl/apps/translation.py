"""Translation of the world's sentences, English to Chinese and back, by one model.

A prompt is a sentence and the sign of the language that is asked for, `<zh>` or
`<en>`; the completion is the translation. One decoder-only Transformer reads the one
and writes the other, in both directions.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import torch
from torch import Tensor

from tokrl import metrics
from tokrl.apps.generation import check_known
from tokrl.masking import unpad
from tokrl.models import LanguageModel, Transformer
from tokrl.rewards import Reward, judge
from tokrl.rollout import collect, encode_prompts
from tokrl.runs import History, progress
from tokrl.sampling import generate
from tokrl.scoring import token_logprobs
from tokrl.tokenizers import SPECIAL_TOKENS, Tokenizer, WordTokenizer, join_words
from tokrl.training.gradient import clipped_gradient
from tokrl.world import LANGUAGES, Story, World, WorldConfig

DIRECTIONS = (("en", "zh"), ("zh", "en"))
MAX_TOKENS = 28
"""No sentence of the world has more words, the end token included."""

LEARNER = WorldConfig(
    people=6, places=6, things=8, verbs=1, time=0.0, manner=0.2, mention_place=0.5,
    join=0.0,
)  # fmt: skip
"""The world of section 6.2: shorter sentences than those of the default one."""

THEY = {"en": frozenset({"They", "they"}), "zh": frozenset({"她们", "他们"})}


# --- data: sentences of the world -----------------------------------------------------


@dataclass(frozen=True)
class Sentence:
    """One sentence in both languages.

    words  {language: its words}
    slots  {language: for each word, the number of the part of the sentence that it
           stands in}: words with one number mean the same, which is the true alignment
    """

    words: Mapping[str, tuple[str, ...]]
    slots: Mapping[str, tuple[int, ...]]

    def text(self, lang: str) -> str:
        """The sentence as a person reads it."""
        return join_words(self.words[_known(lang)])

    @property
    def crossings(self) -> int:
        """How many pairs of parts stand in the other order in the other language.

        0: word for word, part for part; the number of lines that cross where each
        part is joined to its translation.
        """
        order = {lang: list(dict.fromkeys(self.slots[lang])) for lang in LANGUAGES}
        shared = [slot for slot in order["en"] if slot in order["zh"]]
        return sum(
            order["zh"].index(first) > order["zh"].index(second)
            for first, second in combinations(shared, 2)
        )


def sentences(story: Story) -> list[Sentence]:
    """The sentences of a story whose translation needs no other sentence, in order.

    Those with `they` are left out: Chinese writes who is meant, and one sentence alone
    does not tell. Those of yesterday that say who is where and has what begin with the
    day, for Chinese verbs of state do not show the tense.
    """
    found: list[Sentence] = []
    frame, *steps = story.steps[:-1]
    parts: list = [frame]
    for step in steps:
        state = step.event.kind in ("be", "have", "there")
        if not parts and state and story.tense == "past":
            parts.append(frame)
        parts.append(step)
        if step.clause.words(step.choice, "en")[-1] == ".":
            words, slots = zip(*(_read(parts, lang) for lang in LANGUAGES), strict=True)
            if not THEY["en"] & set(words[0]):
                found.append(
                    Sentence(
                        dict(zip(LANGUAGES, words, strict=True)),
                        dict(zip(LANGUAGES, slots, strict=True)),
                    )
                )
            parts = []
    return found


def _read(steps: Sequence, lang: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The words of some clauses, and the slot that each comes from."""
    words: list[str] = []
    slots: list[int] = []
    for number, step in enumerate(steps):
        for i in step.clause.order(lang):
            option = step.clause.slots[i][step.choice[i]]
            said = option.en if lang == "en" else option.zh
            if words and said[:1] == ("There",):  # no longer the first word
                said = ("there", *said[1:])
            # "There is ... in the park": Chinese names the place in the first slot.
            place = step.event.kind == "there" and lang == "en" and i == 3
            words += said
            slots += [100 * number + (0 if place else i)] * len(said)
    return tuple(words), tuple(slots)


def is_held_out(world: World, sentence: Sentence) -> bool:
    """Whether a person and a thing stand in it that `World.held_out` keeps apart."""
    text = sentence.text("en")
    return any(person in text and thing in text for person, thing in world.held_out)


def _names(world: World, sentence: Sentence) -> bool:
    text = sentence.text("en")
    return all(any(n in text for n in names) for names in (world.people, world.things))


def sample_sentences(
    world: World,
    count: int,
    generator: torch.Generator,
    part: str,
    without: Sequence[Sentence] = (),
    naming: bool = False,
) -> list[Sentence]:
    """Draw `count` different sentences from the world's stories.

    part     "train": without any held-out combination; "test": with one
    without  sentences that shall not be among them
    naming   only such as name a person and a thing, as all of the part "test" do
    Raises ValueError for another part, or if the world has too few such sentences:
    if a thousand stories in a row bring no new one.
    """
    if part not in ("train", "test"):
        raise ValueError(f"part={part!r}: give 'train' or 'test'")
    known = {sentence.words["en"] for sentence in without}
    found: dict[tuple[str, ...], Sentence] = {}
    vain = 0
    while len(found) < count:
        before = len(found)
        for sentence in sentences(world.sample_story(generator)):
            wanted = is_held_out(world, sentence) == (part == "test")
            wanted = wanted and (not naming or _names(world, sentence))
            if wanted and sentence.words["en"] not in known:
                found[sentence.words["en"]] = sentence
        vain = vain + 1 if len(found) == before else 0
        if vain == 1000:
            raise ValueError(
                f"count={count}: 1000 stories in a row brought nothing new to the "
                f"{before} sentences of part {part!r}; give less"
            )
    return list(found.values())[:count]


# --- prompts and completions ----------------------------------------------------------


def make_tokenizer(world: World) -> WordTokenizer:
    """A token for each word of both languages, and one to ask for each language."""
    words = {word for lang in LANGUAGES for word in world.vocabulary(lang)}
    words = (words | {"there"}) - THEY["en"] - THEY["zh"] - {*SPECIAL_TOKENS}
    asks = [f"<{lang}>" for lang in LANGUAGES]
    return WordTokenizer([*SPECIAL_TOKENS, *asks, *sorted(words)])


def prompt(text: str, target: str) -> str:
    """What the model reads: a sentence, and the language that is asked for."""
    return f"{text} <{_known(target)}>"


def pairs(
    found: Sequence[Sentence], directions: Sequence[tuple[str, str]] = DIRECTIONS
) -> tuple[list[str], dict[str, list[str]]]:
    """Prompts and columns for `train_policy`: {"reference": [...], "target": [...]}."""
    asked = [(s, *direction) for s in found for direction in directions]
    prompts = [prompt(s.text(source), target) for s, source, target in asked]
    references = [s.text(target) for s, _, target in asked]
    return prompts, {"reference": references, "target": [t for *_, t in asked]}


def encode(
    found: Sequence[Sentence],
    tokenizer: Tokenizer,
    directions: Sequence[tuple[str, str]] = DIRECTIONS,
) -> list[list[int]]:
    """Ids to imitate: `<bos>`, prompt, translation, `<eos>`, in each direction."""
    prompts, columns = pairs(found, directions)
    return [
        [tokenizer.bos_id, *tokenizer.encode(p), *tokenizer.encode(r), tokenizer.eos_id]
        for p, r in zip(prompts, columns["reference"], strict=True)
    ]


def _known(lang: str) -> str:
    if lang not in LANGUAGES:
        raise ValueError(f"language {lang!r}: give one of {', '.join(LANGUAGES)}")
    return lang


# --- rewards: each reads the columns `reference` and `target` -------------------------


class ExactReward:
    """Sequence reward: 1 for the reference to the letter, else 0."""

    __name__ = "exact"

    def __call__(self, prompts, completions, completion_ids, reference, **columns):
        return [float(a == b) for a, b in zip(completions, reference, strict=True)]


class BleuReward:
    """Sequence reward: BLEU of the sentence against its reference, from 0 to 1.

    `metrics.sentence_bleu` / 100; Chinese is counted in characters.
    """

    __name__ = "bleu"

    def __call__(self, prompts, completions, completion_ids, reference, target):
        return [
            metrics.sentence_bleu(text, right, lang) / 100
            for text, right, lang in zip(completions, reference, target, strict=True)
        ]


class BleuShaping:
    """Token reward: by how much each token raises the BLEU of what is written so far.

    Phi(y_<t) is the sentence BLEU of the unfinished translation, from 0 to 1, and the
    token y_t is paid Phi(y_<t+1) - Phi(y_<t): below 0 where it lowers it. The sum over
    a completion is its BLEU: `BleuReward`, shaped by the potential Phi.
    Source: Ng, Harada and Russell 1999, theorem 1.
    """

    __name__ = "bleu_shaping"

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def potential(self, ids: Sequence[int], reference: str, target: str) -> float:
        """Phi of what is written so far."""
        text = self.tokenizer.decode(ids)
        return metrics.sentence_bleu(text, reference, target) / 100

    def __call__(self, prompts, completions, completion_ids, reference, target):
        rewards = []
        for ids, right, lang in zip(completion_ids, reference, target, strict=True):
            phi = [self.potential(ids[:t], right, lang) for t in range(len(ids) + 1)]
            rewards.append([after - before for before, after in pairwise(phi)])
        return rewards


class EditShaping:
    """Token reward: minus the edits that each token adds to those that are needed.

    Phi(y_<t) is minus the edits (insertions, deletions, replacements of tokens) that
    lead from what is written so far to the nearest *beginning* of the reference; of a
    finished translation, to the whole of it. The token y_t is paid Phi(y_<t+1) -
    Phi(y_<t): 0 where it goes on rightly, -1 where it does not, and the end token pays
    for what is missing. The sum over a completion that ends is minus its edit distance.
    """

    __name__ = "edit_shaping"

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, prompts, completions, completion_ids, reference, **columns):
        return [
            self._row(ids, self.tokenizer.encode(right))
            for ids, right in zip(completion_ids, reference, strict=True)
        ]

    def _row(self, ids: Sequence[int], right: Sequence[int]) -> list[float]:
        distances = list(range(len(right) + 1))  # from nothing to right[:j]
        phi, rewards = 0, []
        for token in ids:
            if token == self.tokenizer.eos_id:
                after = -distances[-1]
            else:
                distances = next_row(distances, token, right)
                after = -min(distances)
            rewards.append(float(after - phi))
            phi = after
        return rewards


def next_row(row: Sequence[int], token: int, right: Sequence[int]) -> list[int]:
    """Edit distances from some tokens and one more to right[:j], for each j.

    row  those without the one more
    Source: Wagner and Fischer 1974, algorithm X, one row.
    """
    longer = [row[0] + 1]
    for j, wanted in enumerate(right):
        changed = row[j] + (token != wanted)
        longer.append(min(changed, row[j + 1] + 1, longer[j] + 1))
    return longer


class GreedyBaseline:
    """Sequence reward: another one, minus what the policy's greedy translation gets.

    The baseline of self-critical training, for the advantage `returns` and groups of
    any size: above 0 is what beats the translation that would be shown.

    model  the policy itself, as it is being trained
    Source: Rennie et al. 2017 (SCST), equation 8.
    """

    __name__ = "self_critical"

    def __init__(self, reward: Reward, model: LanguageModel, tokenizer: Tokenizer):
        self.reward, self.model, self.tokenizer = reward, model, tokenizer

    def __call__(self, prompts, completions, completion_ids, **columns):
        first = {text: i for i, text in reversed(list(enumerate(prompts)))}
        ids = greedy(self.model, list(first), self.tokenizer)
        sampled = judge(self.reward, prompts, completions, completion_ids, **columns)
        baseline = judge(
            self.reward,
            list(first),
            [self.tokenizer.decode(row) for row in ids],
            ids,
            **{name: [c[i] for i in first.values()] for name, c in columns.items()},
        )
        of = dict(zip(first, baseline, strict=True))
        return [r - of[text] for r, text in zip(sampled, prompts, strict=True)]


# --- minimum risk ---------------------------------------------------------------------


def minimum_risk(
    seq_logprobs: Tensor,
    costs: Tensor,
    distinct: Tensor | None = None,
    sharpness: float = 1.0,
) -> Tensor:
    """The expected cost over some candidates, as if there were no others; a scalar.

    mean over P of sum_y Q(y) cost(y), with Q(y) = P(y)^a / sum_y' P(y')^a over the
    candidates y' of a prompt. It can be differentiated as it stands.

    seq_logprobs  (P, G), nats, of G candidates of each prompt; carries gradients
    costs         (P, G)
    distinct      (P, G) bool, False on a candidate that another one repeats; None if
                  all are different
    sharpness     a: 1 keeps the proportions of the model, towards 0 all count alike
    Raises ValueError for shapes that differ, or a prompt without a candidate.
    Source: Shen et al. 2016, equations 7 and 8.
    """
    for name, given in (("costs", costs), ("distinct", distinct)):
        if given is not None and given.shape != seq_logprobs.shape:
            raise ValueError(
                f"{name} has shape {tuple(given.shape)}, seq_logprobs "
                f"{tuple(seq_logprobs.shape)}: they must be equal"
            )
    weights = sharpness * seq_logprobs
    if distinct is not None:
        if not distinct.any(-1).all():
            raise ValueError("distinct is False for all candidates of a prompt")
        weights = weights.masked_fill(~distinct, float("-inf"))
    # Without the least cost equal ones give a gradient of 0, not of what was rounded.
    least = costs.amin(-1)
    above = (weights.softmax(-1) * (costs - least[:, None])).sum(-1)
    return (least + above).mean()


def first_of_kind(rows: Sequence[Sequence[int]], group_size: int) -> Tensor:
    """(P, G) bool: True on each completion that none before it in its group equals."""
    marks = []
    for start in range(0, len(rows), group_size):
        group = [tuple(row) for row in rows[start : start + group_size]]
        marks.append([row not in group[:i] for i, row in enumerate(group)])
    return torch.tensor(marks)


def train_minimum_risk(
    model: LanguageModel,
    prompts: Sequence[str],
    reward: Reward,
    tokenizer: Tokenizer,
    generator: torch.Generator,
    columns: Mapping[str, Sequence],
    steps: int,
    prompts_per_step: int = 16,
    group_size: int = 8,
    sharpness: float = 1.0,
    learning_rate: float = 5e-4,
    max_new_tokens: int = MAX_TOKENS,
    clip_grad: float = 1.0,
) -> History:
    """Improve a policy by minimum risk: `minimum_risk` of candidates that it draws.

    The cost of a candidate is minus its reward. The reference is not made one of the
    candidates, as it may be: that would be imitation.
    Arguments, optimiser and history ("reward/mean", "policy/risk" for each step) are
    those of `tokrl.training.train_policy`.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0,
        fused=True,
    )  # fmt: skip
    history = History()
    for step in progress(range(1, steps + 1), desc="train_minimum_risk"):
        drawn = torch.randint(len(prompts), (prompts_per_step,), generator=generator)
        chosen = drawn.tolist()
        rollout = collect(
            model, [prompts[i] for i in chosen], reward, tokenizer, max_new_tokens,
            group_size, generator=generator,
            columns={name: [c[i] for i in chosen] for name, c in columns.items()},
        )  # fmt: skip
        rows = unpad(rollout.completion_ids, rollout.completion_mask)
        seq_logprobs = token_logprobs(model, *rollout.tokens).sum(-1)
        shape = (prompts_per_step, group_size)
        risk = minimum_risk(
            seq_logprobs.view(shape), -rollout.rewards.view(shape),
            first_of_kind(rows, group_size), sharpness,
        )  # fmt: skip
        loss, norm = clipped_gradient([risk], model, clip_grad, step)
        if norm > 0:
            optimizer.step()
        means = {"reward/mean": rollout.rewards.mean(), "policy/risk": loss}
        history.add(step, **{name: float(mean) for name, mean in means.items()})
    return history


# --- translating, and what came of it -------------------------------------------------


def greedy(
    model: LanguageModel, prompts: Sequence[str], tokenizer: Tokenizer
) -> list[list[int]]:
    """The likeliest token each time, as id lists with their end token."""
    rows = []
    for start in range(0, len(prompts), 256):
        ids, mask, _ = generate(
            model, *encode_prompts(prompts[start : start + 256], tokenizer),
            MAX_TOKENS, top_k=1, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id,
        )  # fmt: skip
        rows += unpad(ids, mask)
    return rows


def translate_text(
    model: LanguageModel, tokenizer: Tokenizer, text: str, target: str
) -> str:
    """The likeliest translation of a text, sentence by sentence.

    text    sentences as the world tells them; a last full stop may be missing
    target  "en" or "zh": the language to translate to
    Raises ValueError for words that the model does not know (named), an empty text,
    another language, a text that is in the target language already, or a sentence
    that is too long.
    """
    _known(target)
    found = re.findall(r"[^.。]*[^.。\s][^.。]*[.。]?", text)
    if not found:
        raise ValueError(f"text={text!r}: give at least one sentence")
    check_known(text, tokenizer)
    signs = {
        "Chinese": r"[\u3000-\u303f\u3400-\u9fff\uff00-\uffef]",  # marks, characters
        "English": r"[A-Za-z.]",
    }
    source, other = ("English", "Chinese")[:: 1 if target == "zh" else -1]
    if strange := re.findall(signs[other], text):
        raise ValueError(
            f"target={target!r} is for {source} text, and {text!r} has {other} in it, "
            f"{strange[0]!r}: give {source} alone, or another target"
        )
    if tags := re.findall(r"<[^>]*>", text):
        raise ValueError(f"{tags[0]} is a sign of the model's own: leave it out")
    if not re.search(r"\w", text):
        raise ValueError(f"text={text!r}: give at least one word")
    stop = "." if target == "zh" else "。"
    asked = [s.strip() if s[-1] in ".。" else s.strip() + stop for s in found]
    most = MAX_TOKENS if model.max_length is None else model.max_length - MAX_TOKENS - 2
    for sentence in asked:
        if (size := len(tokenizer.encode(sentence))) > most:
            raise ValueError(
                f"a sentence of {size} tokens: this model reads at most {most}; "
                f"shorten {sentence!r}"
            )
    rows = greedy(model, [prompt(sentence, target) for sentence in asked], tokenizer)
    tokens = [token for row in rows for token in tokenizer.to_tokens(row)]
    silent = {*SPECIAL_TOKENS, *(f"<{lang}>" for lang in LANGUAGES)}
    return join_words([token for token in tokens if token not in silent])


@dataclass(frozen=True)
class Quality:
    """How good some translations are.

    exact  share that equals the reference to the letter
    bleu   corpus BLEU, 0 to 100; of several directions their mean
    chrf   corpus chrF, 0 to 100; of several directions their mean
    texts  the translations, those of each direction together
    """

    exact: float
    bleu: float
    chrf: float
    texts: tuple[str, ...]


def examine(
    model: LanguageModel,
    tokenizer: Tokenizer,
    found: Sequence[Sentence],
    directions: Sequence[tuple[str, str]] = DIRECTIONS,
) -> Quality:
    """Translate sentences greedily in some directions, and measure."""
    scores, every = [], []
    for direction in directions:
        prompts, columns = pairs(found, [direction])
        texts = [tokenizer.decode(row) for row in greedy(model, prompts, tokenizer)]
        references, target = columns["reference"], direction[1]
        scores.append((
            metrics.exact_match(texts, references),
            metrics.bleu(texts, references, target),
            metrics.chrf(texts, references),
        ))  # fmt: skip
        every += texts
    exact, bleu, chrf = (
        sum(column) / len(scores) for column in zip(*scores, strict=True)
    )
    return Quality(exact, bleu, chrf, tuple(every))


# --- which word looks where -----------------------------------------------------------


def source_attention(
    model: Transformer,
    tokenizer: Tokenizer,
    sentence: Sentence,
    direction: tuple[str, str],
) -> Tensor:
    """Where the model looks in the source when it is about to write each target word.

    The true translation is read; its word t is predicted from the position before it.
    Returns (layers, heads, T, S): shares of the attention of that position that go to
    each of the S source words. They sum to less than 1: the rest goes to `<bos>`, the
    sign of the language, and the target words so far.
    """
    source, target = direction
    (ids,) = encode([sentence], tokenizer, [direction])
    size, length = len(sentence.words[source]), len(sentence.words[target])
    weights = torch.stack(model.attention_weights(torch.tensor([ids])))[:, 0]
    return weights[:, :, size + 1 : size + 1 + length, 1 : size + 1]


def pointing(
    weights: Tensor, sentence: Sentence, direction: tuple[str, str]
) -> list[bool]:
    """For each target word with a partner: does its largest weight point to one?

    weights  (T, S), of one head, or of anything else that points
    A partner is a source word of the same slot. Words without one, such as 把, are
    left out.
    """
    source, target = (sentence.slots[lang] for lang in direction)
    best = weights.argmax(-1).tolist()
    return [
        source[at] == slot
        for at, slot in zip(best, target, strict=True)
        if slot in source
    ]


def chance_of_pointing(sentence: Sentence, direction: tuple[str, str]) -> list[float]:
    """What `pointing` would be right with if each source word were as likely."""
    source, target = (sentence.slots[lang] for lang in direction)
    return [source.count(slot) / len(source) for slot in target if slot in source]
