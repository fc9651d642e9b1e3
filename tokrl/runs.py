"""What a run needs around its mathematics: a fixed arithmetic, records, files."""

import gc
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm


def reproducible(seed: int = 0, threads: int = 1) -> torch.Generator:
    """Set up arithmetic that gives the same numbers on every machine.

    Makes float64 the default type and fixes the number of threads: small models
    then sample the same tokens whatever processor they run on (float32 does not).
    Returns a `torch.Generator` with the given seed; every draw of the book comes
    from such a generator, never from hidden global state.
    """
    # Libraries that are imported later draw progress bars; what tqdm says in Jupyter
    # without widgets is no part of a chapter.
    warnings.filterwarnings("ignore", "IProgress not found")
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


class History:
    """The metrics of a run, a row for each step.

    `history["loss"]` is the column of that name, as a list over the rows that have
    it; `history.steps("loss")` are their step numbers; `history.last("loss")` is
    its final value. With a path, every row is also written there at once as a line
    of JSON.
    """

    def __init__(self, path: str | os.PathLike | None = None):
        self.rows: list[dict[str, float]] = []
        self._path = Path(path) if path is not None else None

    def add(self, step: int, **metrics: float) -> None:
        """Record the metrics of a step; names may contain `/`."""
        row = {"step": step, **{name: float(value) for name, value in metrics.items()}}
        self.rows.append(row)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def __getitem__(self, name: str) -> list[float]:
        column = [row[name] for row in self.rows if name in row]
        if not column:
            known = sorted({key for row in self.rows for key in row})
            raise KeyError(f"no metric {name!r}; this history has: {', '.join(known)}")
        return column

    def steps(self, name: str) -> list[int]:
        """The steps at which a metric was recorded."""
        return [int(row["step"]) for row in self.rows if name in row]

    def last(self, name: str) -> float:
        """The last recorded value of a metric."""
        return self[name][-1]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        names = sorted({key for row in self.rows for key in row} - {"step"})
        return f"History({len(self)} rows: {', '.join(names)})"


def progress(items: Iterable, **options: Any) -> tqdm:
    """A `tqdm` bar for a person watching; silent where output is stored.

    A person watches a terminal, or a notebook opened in Jupyter (whose server then
    names the session); a notebook run by a script has neither.
    """
    watched = sys.stderr.isatty() or "JPY_SESSION_NAME" in os.environ
    return tqdm(items, disable=not watched, leave=False, **options)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Stop Python's search for cyclic garbage inside the block.

    For work that makes very many small objects that all stay in use: the search
    would walk them, and all that is loaded, again and again, and find nothing, which
    takes up to half of the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block succeeds.

    A killed or failing run leaves the old file as it was, never half a new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write a JSON file atomically, UTF-8, readable by a person."""
    with atomic_path(path) as temporary:
        text = json.dumps(value, ensure_ascii=False, indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike, what: str = "file") -> Any:
    """Read a JSON file; ValueError names the file if it is not whole."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not a readable {what} ({error}): it may be cut off; "
            "write it again"
        ) from error
