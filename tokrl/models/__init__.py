"""Language models behind one protocol: `logits, cache = model(ids, mask, cache)`."""

import json
import os
from dataclasses import asdict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tokrl.models.attention import KVCache, attention
from tokrl.models.base import LanguageModel
from tokrl.models.gpt2 import from_gpt2, to_gpt2
from tokrl.models.hf import HFModel, from_hf
from tokrl.models.recurrent import CELLS, Recurrent, RecurrentConfig
from tokrl.models.transformer import Transformer, TransformerConfig
from tokrl.models.value import ValueHead, ValueModel, with_value_head
from tokrl.runs import atomic_path

__all__ = [
    "HFModel",
    "KVCache",
    "LanguageModel",
    "Recurrent",
    "RecurrentConfig",
    "Transformer",
    "TransformerConfig",
    "ValueHead",
    "ValueModel",
    "attention",
    "build",
    "from_gpt2",
    "from_hf",
    "load",
    "num_parameters",
    "save",
    "to_gpt2",
    "with_value_head",
]

# Of each kind: its class, its configuration, and what the kind itself decides there.
KINDS: dict[str, tuple[type, type, dict[str, str]]] = {
    **{cell: (Recurrent, RecurrentConfig, {"cell": cell}) for cell in CELLS},
    "transformer": (Transformer, TransformerConfig, {}),
}


def build(
    kind: str, vocab_size: int, generator: torch.Generator | None = None, **shape: int
) -> LanguageModel:
    """A new model with random weights.

    kind        one of: rnn, lstm, gru, transformer
    vocab_size  number of tokens
    generator   decides the weights; None takes torch's global one
    shape       fields of the kind's configuration (width, layers, ...)
    Raises ValueError for an unknown kind or field.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: give one of {', '.join(KINDS)}")
    model_class, config_class, decided = KINDS[kind]
    fields = [f for f in config_class.__dataclass_fields__ if f not in decided]
    if unknown := set(shape) - set(fields):
        raise ValueError(
            f"{kind} has no {', '.join(sorted(unknown))}: it has {', '.join(fields)}"
        )
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(config_class(vocab_size=vocab_size, **decided, **shape))


def num_parameters(model: nn.Module) -> int:
    """How many numbers the model learns; shared ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def save(model: LanguageModel, path: str | os.PathLike) -> None:
    """Write weights and configuration to one safetensors file, atomically.

    Raises ValueError for a model that `build` does not make.
    """
    if type(model) not in {made for made, _, _ in KINDS.values()}:
        raise ValueError(
            f"{type(model).__name__} is not a model that `build` makes: save the one "
            "inside (`.model` of a ValueModel, `.hf.save_pretrained(...)` of an "
            "HFModel)"
        )
    kind = getattr(model.config, "cell", "transformer")
    about = {"kind": kind, "config": json.dumps(asdict(model.config))}
    with atomic_path(path) as temporary:
        save_file(model.state_dict(), temporary, metadata=about)


def load(path: str | os.PathLike) -> LanguageModel:
    """Read a model that `save` wrote, in the type it was written in.

    Raises ValueError for a file that is cut off or not such a model.
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole model file ({error}): save the model again"
        ) from error
    if about.get("kind") not in KINDS:
        raise ValueError(
            f"{path} holds no tokrl model: its kind is {about.get('kind')}"
        )
    model_class, config_class, _ = KINDS[about["kind"]]
    try:
        model = model_class(config_class(**json.loads(about["config"])))
        model.to(next(iter(weights.values())).dtype)
        model.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError, StopIteration) as error:
        raise ValueError(
            f"{path} holds a {about['kind']} that does not fit together: save the "
            "model again"
        ) from error
    return model
