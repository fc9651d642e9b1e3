"""A small world whose text has a known probability, word by word."""

from tokrl.world.config import WorldConfig
from tokrl.world.grammar import Event
from tokrl.world.lexicon import END, LANGUAGES
from tokrl.world.process import State
from tokrl.world.questions import Answer, Question
from tokrl.world.world import Entropy, Story, World

__all__ = [
    "END",
    "LANGUAGES",
    "Answer",
    "Entropy",
    "Event",
    "Question",
    "State",
    "Story",
    "World",
    "WorldConfig",
]
