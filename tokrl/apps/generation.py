"""Generation: a model that goes on with stories, and what its stories are worth.

A prompt is the beginning of a story, perhaps nothing; the completion is the rest. Of
each completion the world says whether it is possible, and of each of its tokens how
likely it should have been.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from textwrap import wrap

import torch
from torch import Tensor

from tokrl.masking import masked_mean, pad, unpad
from tokrl.metrics import distinct_n, self_bleu
from tokrl.models import LanguageModel
from tokrl.rewards import ValidityReward
from tokrl.rollout import encode_prompts
from tokrl.sampling import beam_search, generate, keep_likeliest
from tokrl.scoring import completion_logits, token_kl
from tokrl.tokenizers import EOS, Tokenizer, WordTokenizer, join_words
from tokrl.world import END, State, Story, World, WorldConfig
from tokrl.world.process import Process
from tokrl.world.reading import read_story

WRITER = WorldConfig(cast_things=1, min_sentences=2, max_sentences=4)
"""The world of town-writer: the default one, with shorter stories about one thing."""

SCENE = ("frame", "be", "have", "there")
COMPARED, GRAMS = 60, 3000


# --- data -----------------------------------------------------------------------------


def encode_story(story: Story, tokenizer: Tokenizer, lang: str = "en") -> list[int]:
    """A story to imitate, as ids: `<bos>`, its tokens, `<eos>`."""
    ids = tokenizer.encode(story.text(lang))
    return [tokenizer.bos_id, *ids, tokenizer.eos_id]


def scene(story: Story, lang: str = "en") -> str:
    """How a story begins: who is where, and where the thing is. Then things happen."""
    opening = [step for step in story.steps if step.event.kind in SCENE]
    words = [word for s in opening for word in s.clause.words(s.choice, lang)]
    return join_words(words)


def rest(story: Story, tokenizer: Tokenizer, lang: str = "en") -> list[int]:
    """The completion, as ids, that makes a story of its scene; `<eos>` included."""
    ids = tokenizer.encode(story.text(lang))
    return [*ids[len(tokenizer.encode(scene(story, lang))) :], tokenizer.eos_id]


# --- writing --------------------------------------------------------------------------


def write(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    generator: torch.Generator | None = None,
    beam: int = 0,
    **choice: float,
) -> list[list[int]]:
    """One completion of each prompt, as ids; `<eos>` is the last where it has ended.

    beam    0 draws; above 0, beam search of that width, which draws nothing
    choice  of `tokrl.sampling.generate`: temperature, top_k, top_p
    Completions are as long as the model allows.
    """
    ids, mask = encode_prompts(prompts, tokenizer)
    most = model.max_length - ids.shape[1]
    options = {"eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    if beam and choice:
        raise ValueError(f"beam={beam!r} draws nothing: leave {', '.join(choice)} out")
    if beam:
        out, out_mask, _ = beam_search(model, ids, mask, most, beam, **options)
    else:
        out, out_mask, _ = generate(
            model, ids, mask, most, generator=generator, **choice, **options
        )
    return unpad(out, out_mask)


def continue_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str = "",
    count: int = 1,
    generator: torch.Generator | None = None,
    beam: int = 0,
    **choice: float,
) -> list[str]:
    """Texts that begin with a prompt and go on as the model would.

    count         how many; beam search finds but one
    beam, choice  see `write`
    Raises ValueError for words that the tokenizer does not know, naming them, for a
    prompt that leaves the model no room, and for a `count` below 1.
    """
    if count < 1 or (beam and count > 1):
        raise ValueError(f"count={count!r}: give at least 1, and 1 for beam search")
    check_known(prompt, tokenizer)
    size = len(tokenizer.encode(prompt)) + 1
    if model.max_length is not None and size >= model.max_length:
        raise ValueError(
            f"the prompt has {size} tokens, <bos> included; this model reads "
            f"{model.max_length}, and one more is to be written: shorten the prompt"
        )
    made = write(model, tokenizer, [prompt] * count, generator, beam, **choice)
    return [tokenizer.decode([*tokenizer.encode(prompt), *ids]) for ids in made]


def check_known(text: str, tokenizer: Tokenizer) -> None:
    """ValueError that names the words of a text that become `<unk>`, and like ones."""
    tokens, ids = tokenizer.tokens(text), tokenizer.encode(text)
    unknown = [t for t, i in zip(tokens, ids, strict=True) if i == tokenizer.unk_id]
    if unknown:
        raise ValueError(
            "not in the vocabulary: "
            + ", ".join(_with_like_ones(t, tokenizer.vocab) for t in unknown)
            + f"; it has {len(tokenizer)} tokens, see `tokenizer.vocab`"
        )


def _with_like_ones(token: str, vocabulary: Iterable[str]) -> str:
    like = get_close_matches(token, vocabulary, n=2, cutoff=0.6)
    return f"{token!r}" + (f" (like {' or '.join(map(repr, like))}?)" if like else "")


# --- measuring ------------------------------------------------------------------------


@dataclass(frozen=True)
class Quality:
    """What some completions are worth.

    valid           share without an error: no token is impossible after those before
                    it, and the end comes where a story may end
    errors_per_100  errors for each 100 tokens. An error is the first impossible token
                    of a completion; what follows it is neither judged nor counted
    length          tokens of a completion, `<eos>` included, judged or not
    distinct_4      share of different ones among the first 3,000 4-grams of tokens, see
                    `tokrl.metrics.distinct_n`: so that longer texts do not lose by it
    self_bleu       0 to 100, of the first 60: the lower, the more they differ
    """

    valid: float
    errors_per_100: float
    length: float
    distinct_4: float
    self_bleu: float


def examine(
    prompts: Sequence[str], completions: Sequence[Sequence[int]], judge: ValidityReward
) -> Quality:
    """Measure completions, as ids, of prompts: at least two.

    Diversity falls as more texts are counted: compare completions of the same prompts
    only, and enough of them to have 3,000 4-grams.
    """
    tokenizer = judge.tokenizer
    pairs = zip(prompts, completions, strict=True)
    errors = [judge.first_error(prompt, ids) for prompt, ids in pairs]
    judged = sum(
        len(ids) if at is None else at + 1
        for ids, at in zip(completions, errors, strict=True)
    )
    wrong = len(errors) - errors.count(None)
    return Quality(
        valid=1 - wrong / len(errors),
        errors_per_100=100 * wrong / judged,
        length=sum(map(len, completions)) / len(completions),
        distinct_4=distinct_n(_first_grams(tokenizer, completions, 4, GRAMS), 4),
        self_bleu=self_bleu(
            [tokenizer.decode(ids) for ids in completions[:COMPARED]], judge.lang
        ),
    )


def _first_grams(
    tokenizer: Tokenizer, completions: Sequence[Sequence[int]], n: int, most: int
) -> list[list[str]]:
    """The tokens of completions, cut off where they have `most` n-grams in all."""
    texts = []
    for ids in completions:
        left = most - sum(max(len(text) - n + 1, 0) for text in texts)
        if left <= 0:
            break
        texts.append(tokenizer.to_tokens(ids[: left + n - 1]))
    return texts


def true_logprobs(
    world: World,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    completions: Sequence[Sequence[int]],
    lang: str = "en",
) -> tuple[Tensor, Tensor]:
    """The world's own log-probs of every token, where each token was to be chosen.

    Returns (B, T, V), nats, and a mask (B, T): 1 up to the first impossible token,
    whose place still has a distribution, and 0 after it, where nothing is possible.
    """
    shape = len(completions), max(map(len, completions))
    probs = torch.zeros(*shape, len(tokenizer))
    mask = torch.zeros(shape, dtype=torch.int64)
    for i, (prompt, ids) in enumerate(zip(prompts, completions, strict=True)):
        before = tokenizer.encode(prompt)
        for t in range(len(ids)):
            found = world.token_probs([*before, *ids[:t]], tokenizer, lang)
            if not found:
                break
            probs[i, t, list(found)] = torch.tensor(list(found.values())).to(probs)
            mask[i, t] = 1
    return probs.log(), mask


@torch.no_grad()
def kl_from_truth(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    completions: Sequence[Sequence[int]],
    truth: tuple[Tensor, Tensor],
    cut: bool = False,
    **choice: float,
) -> float:
    """sum_v p log(p / q), p the world's and q the model's: nats per token, exact.

    truth   what `true_logprobs` gives: the mean is over the places that it has
    cut     take for q the model freed, at each place, of all impossible tokens, the
            others in proportion as before: it makes no error
    choice  of `tokrl.sampling.generate`: q is then what that draws from. It is
            infinite if a token that the world may choose is never drawn

    Along the world's own stories it is the model's cross-entropy less the entropy,
    without the noise of which token came; along the model's it says how far it is off
    where it goes itself.
    """
    logprobs, mask = truth
    # Where the mask is 0 nothing is possible: any distribution will do.
    logprobs = torch.where(mask[..., None] == 1, logprobs, 0.0)
    probs = _drawn_from(model, tokenizer, prompts, completions, **choice)
    probs = torch.where(mask[..., None] == 1, probs, 1.0)
    if cut:
        probs = torch.where(logprobs > -torch.inf, probs, 0.0)
    return float(masked_mean(token_kl(logprobs, probs.log()), mask))


@torch.no_grad()
def within_reach(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    completions: Sequence[Sequence[int]],
    **choice: float,
) -> float:
    """Share of some completions, as ids, that would ever be drawn.

    choice  of `tokrl.sampling.generate`: a completion is out of reach if one of its
            tokens is not kept by top_k or top_p
    """
    ids, mask = pad(completions, tokenizer.pad_id, side="right")
    probs = _drawn_from(model, tokenizer, prompts, completions, **choice)
    kept = (probs.gather(-1, ids[..., None])[..., 0] > 0) | (mask == 0)
    return float(kept.all(-1).to(probs).mean())


def _drawn_from(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    completions: Sequence[Sequence[int]],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Tensor:
    """What each token of completions would be drawn from: probabilities (B, T, V)."""
    out = pad(completions, tokenizer.pad_id, side="right")
    logits = completion_logits(model, *encode_prompts(prompts, tokenizer), *out)
    probs = keep_likeliest((logits / temperature).softmax(-1), top_k, top_p)
    return probs / probs.sum(-1, keepdim=True)


# --- a goal ---------------------------------------------------------------------------


class EndStateReward:
    """Sequence reward: 1 for a whole possible story that ends with a thing in a place.

    In a place is what lies there, and what is held, or in a box, by whoever is there. A
    story with an error, or without an end, gets 0 wherever the thing was.
    """

    __name__ = "end_state"

    def __init__(
        self, world: World, tokenizer: Tokenizer, thing: str, place: str, lang="en"
    ):
        for name, known in ((thing, world.things), (place, world.places)):
            if name not in known:
                raise ValueError(f"{name!r}: this world has {', '.join(known)}")
        self.world, self.tokenizer, self.lang = world, tokenizer, lang
        self.thing, self.place = thing, place
        self._process = Process(world.config)

    def state(self, prompt: str, ids: Sequence[int]) -> State | None:
        """The facts at the end of a story; None if it is impossible or has no end."""
        text = self.tokenizer.decode([*self.tokenizer.encode(prompt), *ids])
        if not len(ids) or ids[-1] != self.tokenizer.eos_id:
            return None
        words = [*self.world.split(text, self.lang), END]
        position = read_story(self._process, words, self.lang)
        ended = position.steps and position.steps[-1].event.kind == "end"
        whole = ended and position.furthest == len(words)
        return position.steps[-1].after.state if whole else None

    def holds(self, state: State | None) -> bool:
        """Whether the thing is in the place; not where there is no thing or state."""
        known = state is not None and self.thing in state.things
        return known and state.place(self.thing) == self.place

    def __call__(self, prompts, completions, completion_ids, **columns):
        pairs = zip(prompts, completion_ids, strict=True)
        return [float(self.holds(self.state(prompt, ids))) for prompt, ids in pairs]


class ProgressReward:
    """Token reward: +1 where a thing comes to a place, -1 where it leaves it.

    It is paid on the token that ends the clause which says so, as far as the story is
    possible, and is what an `EndStateReward` says after the clause less what it says
    before: a potential. So the sum over a whole possible story is 1 if it ends as
    wished, less 1 if its prompt was so already.

    goal  the wish, with a word tokenizer; ValueError for another
    """

    __name__ = "progress"

    def __init__(self, goal: EndStateReward):
        if not isinstance(goal.tokenizer, WordTokenizer):
            raise ValueError(
                f"{type(goal.tokenizer).__name__}: give a goal with a WordTokenizer"
            )
        self.goal = goal

    def __call__(self, prompts, completions, completion_ids, **columns):
        pairs = zip(prompts, completion_ids, strict=True)
        return [self._row(prompt, ids) for prompt, ids in pairs]

    def _row(self, prompt: str, ids: Sequence[int]) -> list[float]:
        goal, row = self.goal, [0.0] * len(ids)
        tokens = [*goal.tokenizer.tokens(prompt), *goal.tokenizer.to_tokens(ids)]
        words = [END if token == EOS else token for token in tokens]
        told, at, before = len(words) - len(ids), 0, False
        for step in read_story(goal._process, words, goal.lang).steps:
            at += len(step.clause.words(step.choice, goal.lang))
            now = goal.holds(step.after.state)
            if told < at <= len(words):
                row[at - 1 - told] = float(now) - float(before)
            before = now
        return row


# --- reading --------------------------------------------------------------------------


def examples(
    prompts: Sequence[str],
    completions: Sequence[Sequence[int]],
    judge: ValidityReward,
    width: int = 76,
) -> str:
    """Prompts and what was made of them; `**` stands before the first error."""
    blocks = []
    for prompt, ids in zip(prompts, completions, strict=True):
        at, decode = judge.first_error(prompt, ids), judge.tokenizer.decode
        text = decode(ids)
        if at is not None:
            right = decode(ids[:at])
            text = f"{right} **{text[len(right) :].lstrip() or '(the end)'}"
        lines = [*wrap(prompt, width), *wrap(text, width - 2)]
        told = len(wrap(prompt, width))
        blocks.append("\n".join(lines[:told] + ["  " + line for line in lines[told:]]))
    return "\n\n".join(blocks)
