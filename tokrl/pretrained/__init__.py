"""Small pretrained models of the package, and where they are."""

import os
from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = {
    "gpt2": "town-gpt2",
    "bert": "town-bert",
    "writer": "town-writer",
    "translator": "town-translator",
    "reader": "town-reader",
}
HUB = {"gpt2": "gpt2", "bert": "bert-base-uncased"}


def path(name: str) -> str:
    """The folder of a model of ours.

    name  "gpt2" and "bert" are for `from_pretrained`: of GPT2LMHeadModel and
          GPT2Tokenizer; of BertModel, BertForMaskedLM and BertTokenizer. "writer",
          "translator" and "reader" are the models of chapter 6, `model.safetensors` for
          `tokrl.models.load` and `tokrl.json` for `Tokenizer.load`.
    With TOKRL_HUB=1 in the environment the first two are the names of the large models
    on the Hugging Face hub instead, which `from_pretrained` then downloads; the others
    have no such twin.
    Raises ValueError for another name, FileNotFoundError if the folder is not there:
    `python -m tokrl.pretrained.make` makes it.
    """
    if name not in NAMES:
        raise ValueError(f"name={name!r}: give one of {', '.join(NAMES)}")
    if os.environ.get("TOKRL_HUB") == "1" and name in HUB:
        return HUB[name]
    folder = FOLDER / NAMES[name]
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not there: `python -m tokrl.pretrained.make {name}` makes it"
        )
    return str(folder)
