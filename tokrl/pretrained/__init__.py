"""Small pretrained models of the package, and where they are."""

import os
from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = {"gpt2": "town-gpt2", "bert": "town-bert"}
HUB = {"gpt2": "gpt2", "bert": "bert-base-uncased"}


def path(name: str) -> str:
    """What to give to `from_pretrained`: the folder of a model of ours.

    name  "gpt2" for GPT2LMHeadModel and GPT2Tokenizer, "bert" for BertModel,
          BertForMaskedLM and BertTokenizer
    With TOKRL_HUB=1 in the environment it is the name of the large model on the
    Hugging Face hub instead, which `from_pretrained` then downloads.
    Raises ValueError for another name, FileNotFoundError if the folder is not there:
    `python -m tokrl.pretrained.make` makes it.
    """
    if name not in NAMES:
        raise ValueError(f"name={name!r}: give one of {', '.join(NAMES)}")
    if os.environ.get("TOKRL_HUB") == "1":
        return HUB[name]
    folder = FOLDER / NAMES[name]
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not there: `python -m tokrl.pretrained.make {name}` makes it"
        )
    return str(folder)
