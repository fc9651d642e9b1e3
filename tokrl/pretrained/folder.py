"""The folder of a model, written whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokrl import models
from tokrl.runs import write_json
from tokrl.tokenizers import Tokenizer
from tokrl.world import World


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of `folder` at the end.

    If the block raises, what stood in `folder` stays as it was.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        made = Path(temporary) / folder.name
        made.mkdir()
        yield made
        for file in made.iterdir():
            file.chmod(0o644)
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)


def write_small(
    folder: Path,
    kept: Mapping[str, models.LanguageModel],
    tokenizer: Tokenizer,
    world: World,
    measured: Mapping[str, Any],
    card: str,
) -> None:
    """Write a small model of chapter 6 with all that goes with it.

    kept  {name: model}, each in a safetensors file of its own
    card  the text of README.md, with what was measured in it
    """
    with replacing(folder) as made:
        for name, model in kept.items():
            models.save(model, made / f"{name}.safetensors")
        tokenizer.save(made / "tokrl.json")
        write_json(made / "world.json", world.to_dict())
        write_json(made / "measured.json", measured)
        (made / "README.md").write_text(card, encoding="utf-8")
