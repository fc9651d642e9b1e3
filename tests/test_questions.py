"""Questions about a story: their answers follow from its events."""

import pytest
import torch

from tokrl.world import LANGUAGES, Question, World


@pytest.fixture(scope="module")
def world():
    return World.default()


def draw(world, count, seed, **options):
    return world.sample_stories(count, torch.Generator().manual_seed(seed), **options)


def told(world, text):
    """The story that a text tells, drawn from stories that begin like it."""
    words = [*world.split(text), "<eos>"]
    return next(story for story in world.all_stories() if story.words() == words)


def from_events(story, name):
    """Where a name is, by walking the events backwards: another way to the answer."""
    while True:
        for event in reversed(story.events):
            if event.kind in ("be", "go") and name in event.subject:
                return event.target
            if event.thing != name:
                continue
            if event.kind in ("have", "take", "out"):
                name = event.subject[0]
            elif event.kind in ("give", "put"):
                name = event.target
            elif event.kind == "there":
                return event.target
            else:  # dropped: where that person was then
                at = story.events.index(event)
                return story.states[at].place(event.subject[0])
            break
        else:
            return None


def test_answers_agree_with_the_events_read_backwards(world):
    hops = set()
    for story in draw(world, 500, 0):
        if len(set(story.events)) < len(story.events):
            continue  # `index` above would find the first of two equal events
        for question, answer in world.questions(story):
            if question.kind == "where":
                assert answer.name == from_events(story, question.about)
            hops.add(answer.hops)
            assert world.answer(story, question) == answer
    assert hops == {1, 2, 3}


def test_a_story_by_hand():
    world = World.small(1)
    story = told(
        world,
        "Today, Anna is in the kitchen. Tom is in the kitchen. Anna has a red ball. "
        "Anna goes to the garden.",
    )
    replies = {
        "Where is Anna ?": (["garden"], ["花园"], 1),
        "Where is Tom ?": (["kitchen"], ["厨房"], 1),
        "Where is the red ball ?": (["garden"], ["花园"], 2),
        "Who has the red ball ?": (["Anna"], ["安娜"], 1),
    }
    found = {
        " ".join(q.words()): (a.words(), a.words("zh"), a.hops)
        for q, a in world.questions(story)
    }
    assert found == replies
    chain = world.answer(story, Question("where", "red ball")).chain
    assert chain == ("red ball", "Anna", "garden")
    assert "".join(Question("who", "red ball").words("zh")) == "谁有红球？"
    assert world.answer(story, Question("who", "old book")).words() == ["unknown"]
    with pytest.raises(ValueError, match="who"):
        world.answer(story, Question("who", "Anna"))
    with pytest.raises(ValueError, match="when"):
        world.answer(story, Question("when", "Anna"))


def test_containers_and_nobody(world):
    """Somebody has what is in a box that is held; nobody has what lies somewhere."""
    seen = set()
    for story in draw(world, 3000, 1):
        state = story.states[-1]
        for question, answer in world.questions(story):
            if question.kind == "who":
                assert (answer.name == "nobody") == (
                    state.holder(question.about) is None
                )
                if answer.name != "nobody":
                    assert answer.name == state.holder(question.about)
                seen.add((answer.name == "nobody", answer.hops))
    assert seen == {(True, 1), (True, 2), (False, 1), (False, 2)}


def test_questions_agree_in_tense_and_number(world):
    forms = {
        " ".join(question.words()[:2])
        for story in draw(world, 300, 2)
        for question, _ in world.questions(story)
    }
    assert forms == {"Where is", "Where are", "Where was", "Where were", "Who has",
                     "Who had"}  # fmt: skip


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_vocabulary_covers_questions_and_answers(world, lang):
    words = set(world.vocabulary(lang))
    everything = set(world.vocabulary(lang, questions=True))
    seen = set(words)
    for story in draw(world, 2000, 3):
        generator = torch.Generator().manual_seed(len(seen))
        question, answer = world.sample_question(story, generator, unknown=0.2)
        seen |= {*question.words(lang), *answer.words(lang)}
    assert seen == everything > words


def test_sampling_questions(world):
    generator = torch.Generator().manual_seed(4)
    story = next(
        s for s in draw(world, 100, 5)
        if {a.hops for _, a in world.questions(s)} == {1, 2}
    )  # fmt: skip
    drawn = [world.sample_question(story, generator) for _ in range(2000)]
    assert set(drawn) == set(world.questions(story))
    share = sum(answer.hops == 2 for _, answer in drawn) / len(drawn)
    assert share == pytest.approx(0.5, abs=0.05)
    assert world.sample_question(story, generator, hops=2)[1].hops == 2
    with pytest.raises(ValueError, match="hops=4"):
        world.sample_question(story, generator, hops=4)
    drawn = [world.sample_question(story, generator, unknown=0.3) for _ in range(2000)]
    share = sum(answer.name == "unknown" for _, answer in drawn) / len(drawn)
    assert share == pytest.approx(0.3, abs=0.05)
    for question, answer in drawn:
        assert world.answer(story, question) == answer
        known = question.about in story.states[-1].people + story.states[-1].things
        assert (answer.name == "unknown") != known


# --- the split ------------------------------------------------------------------------


def test_held_out_combinations_occur_in_the_test_part_only(world):
    train, test = (draw(world, 2000, 6, part=part) for part in ("train", "test"))
    met = set().union(*(story.pairs for story in train))
    assert not met & world.held_out
    assert all(story.pairs & world.held_out for story in test)
    assert met | world.held_out == {(p, t) for p in world.people for t in world.things}
    assert {s.text() for s in train}.isdisjoint(s.text() for s in test)
    share = sum(world.part(s) == "test" for s in draw(world, 2000, 7)) / 2000
    assert 0.1 < share < 0.3


def test_every_person_and_thing_is_also_trained_on(world):
    for name in world.people:
        assert sum(name == person for person, _ in world.held_out) < len(world.things)
    for name in world.things:
        assert sum(name == thing for _, thing in world.held_out) < len(world.people)


def test_the_split_never_changes(world):
    """Which pairs are held out is part of the world: trained models rely on it."""
    assert len(world.held_out) == 14
    assert sorted(world.held_out)[:3] == [
        ("Anna", "new book"), ("David", "big basket"), ("David", "black gloves"),
    ]  # fmt: skip
    assert World.small(3).held_out <= world.held_out


def test_a_part_that_is_not_there_is_refused():
    world = World.small()
    assert not world.held_out
    with pytest.raises(ValueError, match="too small"):
        draw(world, 1, 0, part="test")
    with pytest.raises(ValueError, match="'dev'"):
        draw(world, 1, 0, part="dev")
