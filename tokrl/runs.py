"""What a run needs around its mathematics: a fixed arithmetic, records, files."""

import gc
import json
import os
import signal
import sys
import tempfile
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm


def reproducible(seed: int = 0, threads: int = 1) -> torch.Generator:
    """Set up arithmetic that gives the same numbers on every machine.

    Makes float64 the default type and fixes the number of threads: small models
    then sample the same tokens whatever processor they run on (float32 does not).
    Returns a `torch.Generator` with the given seed; every draw of the book comes
    from such a generator, never from hidden global state.
    """
    # What the libraries of Hugging Face, imported later, say of their progress and of
    # weights left aside, and tqdm of missing widgets, is no part of a chapter.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
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
    of JSON. `rows` are those of an earlier part of the run: the file then holds them
    and nothing else, whatever it held before.
    """

    def __init__(
        self,
        path: str | os.PathLike | None = None,
        rows: Sequence[Mapping[str, float]] | None = None,
    ):
        self.rows: list[dict[str, float]] = [dict(row) for row in rows or ()]
        self._path = Path(path) if path is not None else None
        if self._path is not None and rows is not None:
            with atomic_path(self._path) as temporary:
                lines = "".join(json.dumps(row) + "\n" for row in self.rows)
                temporary.write_text(lines, encoding="utf-8")

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
        mask = os.umask(0)  # what it is, is told only to who sets it
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # as any new file: temporary ones are private
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


# --- checkpoints ----------------------------------------------------------------------

_STATE, _CHECK, _TENSOR, _PAIRS = "tokrl_state", "crc32", "__tensor__", "__pairs__"


def save_checkpoint(path: str | os.PathLike, state: Any) -> None:
    """Write all that a run needs to go on, as one file, atomically.

    state  dicts, lists, numbers, strings, None and tensors, nested as you like;
           tuples come back as lists. Keys may be strings, numbers or None.
    The file is safetensors: the tensors, and the rest as JSON in its header, with a
    checksum over both. Nothing in it can run code.
    Raises TypeError for anything else in the state, before the old file is touched.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_take_tensors(state, tensors))
    about = {_STATE: text, _CHECK: _checksum(text, tensors)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=about)


def load_checkpoint(path: str | os.PathLike) -> Any:
    """The state that `save_checkpoint` wrote, tensors on the CPU.

    Raises FileNotFoundError if there is none, ValueError that names the file if it is
    not whole or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: there is no checkpoint")
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _damaged(path, error) from error
    if _STATE not in about:
        raise ValueError(f"{path} is a safetensors file, but no checkpoint of a run")
    if about.get(_CHECK) != _checksum(about[_STATE], tensors):
        raise _damaged(path, "its checksum differs")
    return _put_tensors(json.loads(about[_STATE]), tensors)


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(
        f"{path} is not a whole checkpoint ({why}): put a copy in its place, or remove "
        "it and start the run again"
    )


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    total = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total = zlib.crc32(f"{name} {tensor.dtype} {tensor.shape}".encode(), total)
        flat = tensor.reshape(-1).view(torch.uint8)
        total = zlib.crc32(memoryview(flat.numpy()), total)
    return f"{total:08x}"


def _take_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value with a name for each tensor; the tensors themselves go to the dict."""
    if isinstance(value, Tensor):
        name = f"{len(tensors):06d}"
        # A copy: two tensors of a model may share memory, those of a file may not.
        copied = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        tensors[name] = copied
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        for key in value:
            if key is not None and not isinstance(key, (str, int, float)):
                raise TypeError(f"the key {key!r}: give strings, numbers or None")
        pairs = [(key, _take_tensors(v, tensors)) for key, v in value.items()]
        plain = all(isinstance(key, str) for key, _ in pairs)
        if plain and set(value) not in ({_TENSOR}, {_PAIRS}):
            return dict(pairs)
        return {_PAIRS: pairs}
    if isinstance(value, (list, tuple)):
        return [_take_tensors(v, tensors) for v in value]
    return value


def _put_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undo `_take_tensors`."""
    if isinstance(value, list):
        return [_put_tensors(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {_TENSOR}:
        return tensors[value[_TENSOR]]
    pairs = value[_PAIRS] if set(value) == {_PAIRS} else value.items()
    return {key: _put_tensors(v, tensors) for key, v in pairs}


def fingerprint(value: Any) -> str:
    """A few letters that differ where values do: what `save_checkpoint` can store."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_take_tensors(value, tensors))
    return _checksum(text, tensors)


def random_state(generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Where the draws of a run stand: its generator's, and torch's own (dropout)."""
    source = generator or torch.default_generator
    return {"generator": source.get_state(), "torch": torch.get_rng_state()}


def set_random_state(
    state: Mapping[str, Tensor], generator: torch.Generator | None = None
) -> None:
    """Go on drawing from where `random_state` was taken."""
    torch.set_rng_state(state["torch"])
    (generator or torch.default_generator).set_state(state["generator"])


def first_not_finite(tensors: Iterable[tuple[str, Tensor | None]]) -> str | None:
    """The name of the first tensor with a NaN or an infinity; None if there is none."""
    for name, tensor in tensors:
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            return name
    return None


@contextmanager
def interrupt_between_steps() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C back until a step is finished, so that its state is whole.

    Gives a function that tells whether Ctrl-C was pressed: ask it after each step,
    save, and raise KeyboardInterrupt. Pressed a second time, it interrupts at once.
    Outside of the main thread, where Python hears no signals, nothing is held back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed = False
    before = signal.getsignal(signal.SIGINT)

    def press(number: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)


class Run:
    """The folder of a run: what it was asked, what it measured, how to go on.

    config.json             the configuration and the data, for a person to read
    log.jsonl               a line for each step, the rows of `history`
    checkpoint.safetensors  see `save_checkpoint`

    folder  None stores nothing
    config  the trainer's settings, JSON values under their names
    data    the same for what the run learns from, such as fingerprints
    resume  go on from the checkpoint, with the log cut back to it; from the start, with
            the same settings, if the folder has none
    free    settings that may change when a run goes on
    Raises ValueError if the folder holds a run that is not to be resumed, if the run
    was made with other settings or data (named), or if its checkpoint is not whole.
    """

    def __init__(
        self,
        folder: str | os.PathLike | None,
        config: Mapping[str, Any],
        data: Mapping[str, Any],
        resume: bool = False,
        free: Sequence[str] = ("checkpoint_every",),
    ):
        self.folder = Path(folder) if folder is not None else None
        self._state: dict[str, Any] | None = None

        def fixed(config: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
            return {k: v for k, v in {**config, **data}.items() if k not in free}

        self._about = fixed(config, data)
        if self.folder is None:
            if resume:
                raise ValueError("resume=True without a folder: name the run's folder")
            self.history = History()
            return
        log, settings = self.folder / "log.jsonl", self.folder / "config.json"
        self.checkpoint = self.folder / "checkpoint.safetensors"
        if resume and self.checkpoint.exists():
            self._state = load_checkpoint(self.checkpoint)
            self._check_same(self._state["about"], self.checkpoint)
        elif resume and settings.exists():
            made = read_json(settings, "record of a run's settings")
            self._check_same(fixed(made["config"], made["data"]), settings)
        elif not resume and any(p.exists() for p in (log, settings, self.checkpoint)):
            raise ValueError(
                f"{self.folder} holds a run already: give resume=True to go on with "
                "it, or another folder"
            )
        for left in self.folder.glob(f".{self.checkpoint.name}.*"):
            left.unlink()  # half a checkpoint: the run was killed while it wrote
        write_json(settings, {"config": dict(config), "data": dict(data)})
        self.history = History(log, self._state["history"] if self._state else [])

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator | None = None,
    ) -> dict[str, Any]:
        """Put everything back as it was when the checkpoint was written.

        Returns what else the trainer gave to `save`; {} if the run starts anew.
        Raises ValueError that names the first tensor that has another shape or type.
        """
        if self._state is None:
            return {}
        saved, own = self._state["model"], model.state_dict()
        for name in [*own, *(name for name in saved if name not in own)]:
            old, new = (
                f"{tuple(side[name].shape)} {side[name].dtype}"
                if name in side
                else None
                for side in (saved, own)
            )
            if old != new:
                raise ValueError(
                    f"{self.checkpoint} has {name}: {old}, the model has {new}: resume "
                    "with the model the run was started with"
                )
        model.load_state_dict(saved)
        optimizer.load_state_dict(self._state["optimizer"])
        set_random_state(self._state["random"], generator)
        return self._state["more"]

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator | None = None,
        **more: Any,
    ) -> None:
        """Write the checkpoint: the run can go on from here, bit for bit.

        more  what else the trainer needs, see `save_checkpoint`
        Raises FloatingPointError, and leaves the last checkpoint as it is, if a
        parameter is not finite: from there no run could go on.
        """
        if self.folder is None:
            return
        if bad := first_not_finite(model.named_parameters()):
            raise FloatingPointError(
                f"step {len(self.history)}: its update left the parameter {bad} with a "
                "number that is not finite"
            )
        state = {
            "about": self._about,
            "history": self.history.rows,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random": random_state(generator),
            "more": more,
        }
        save_checkpoint(self.checkpoint, state)

    def _check_same(self, saved: Mapping[str, Any], where: Path) -> None:
        # As JSON gives them back: a tuple is a list.
        given = json.loads(json.dumps(self._about))
        for name in [*given, *(name for name in saved if name not in given)]:
            old, new = saved.get(name), given.get(name)
            if old != new:
                raise ValueError(
                    f"{where} was made with {name}={old!r}, this run has "
                    f"{name}={new!r}: resume with what the run was started with, or "
                    "start another one in another folder"
                )
