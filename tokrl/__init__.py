"""tokrl: token-level reinforcement learning of language models.

The package behind the book. Its rooms are the nouns of the token-level
decision process: a world that writes stories with known probabilities,
tokenizers, models, rewards, advantages, losses, rollouts, training.
"""

from importlib.metadata import version

__version__ = version("tokrl")
