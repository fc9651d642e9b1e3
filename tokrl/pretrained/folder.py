"""The folder of a model, written whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
