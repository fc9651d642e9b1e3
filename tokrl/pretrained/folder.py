"""The folder of a model, written whole or not at all."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokrl import models
from tokrl.runs import write_json
from tokrl.tokenizers import Tokenizer
from tokrl.world import World


def require_replaceable(folder: Path) -> None:
    """ValueError unless a finished model may take the place of `folder`.

    It may where nothing is, and where a model is: files, weights among them.
    """
    if not folder.name or folder.name == ".." or folder.is_symlink():
        raise ValueError(f"{folder}: give the folder of the model by its own name")
    if not folder.exists():
        return
    inside = list(folder.iterdir()) if folder.is_dir() else None
    if inside is None or any(path.is_dir() for path in inside):
        raise ValueError(
            f"{folder} is no folder of a model: name another, or a new one"
        )
    if inside and not any(path.suffix == ".safetensors" for path in inside):
        raise ValueError(
            f"{folder} holds {inside[0].name} and no model, and would be replaced: "
            "name a new folder"
        )


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, which takes the place of `folder` at the end.

    If the block raises, what stood in `folder` stays as it was.
    Raises ValueError as `require_replaceable` does, before anything is written.
    """
    require_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        made = Path(temporary) / folder.name
        made.mkdir()
        yield made
        for file in made.iterdir():
            file.chmod(0o644)
        if folder.exists():  # goes with the temporary folder, once the new one is there
            folder.rename(Path(temporary) / "before")
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
