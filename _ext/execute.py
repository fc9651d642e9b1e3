"""Run notebooks in fresh kernels and store their outputs: `make run [CHAPTER=...]`.

Two runs on one machine give byte-identical files, so a difference in version control
is a difference in what the chapter shows.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

METADATA = {
    "kernelspec": {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
# What editors leave in cells: state of the last session, not part of the chapter.
EDITOR_KEYS = {"ExecuteTime", "collapsed", "execution", "scrolled"}
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def find_notebooks(path):
    if path.is_file():
        if path.suffix != ".ipynb":
            sys.exit(f"{path} is no notebook: name a folder or a .ipynb file")
        return [path]
    found = sorted(path.rglob("*.ipynb"))
    return [p for p in found if ".ipynb_checkpoints" not in p.parts]


def normalise(notebook):
    """Leave out what depends on the machine, the editor or the day."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        for key in EDITOR_KEYS & cell.metadata.keys():
            del cell.metadata[key]
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                # Frames inside libraries name folders of this machine.
                output.traceback = [
                    part
                    for part in output.traceback
                    if not ANSI.sub("", part).startswith("File ")
                ]


def stderr_cells(notebook):
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                yield cell.id, output.text


def execute(path, timeout):
    """Run one notebook and replace it on disk; raise RuntimeError if it misbehaves."""
    before = path.read_text("utf8")
    notebook = nbformat.reads(before, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        timeout=timeout,
        # At every start ipykernel warns that it talks to this machine unencrypted.
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        raise RuntimeError(str(error)) from None
    for cell_id, text in stderr_cells(notebook):
        raise RuntimeError(f"cell {cell_id} writes to stderr:\n{text}")
    normalise(notebook)
    nbformat.validate(notebook)
    after = nbformat.writes(notebook) + "\n"
    if after != before:
        unfinished = path.with_suffix(".ipynb.tmp")
        unfinished.write_text(after, "utf8")
        os.replace(unfinished, path)
    return after != before


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, nargs="?", default=Path("book"))
    parser.add_argument("--timeout", type=int, default=600, help="seconds per cell")
    options = parser.parse_args(arguments)
    notebooks = find_notebooks(options.path)
    if not notebooks:
        sys.exit(f"no notebook at {options.path}: name a folder or file under book/")
    failed = 0
    for path in notebooks:
        start = time.perf_counter()
        try:
            state = "changed" if execute(path, options.timeout) else "same"
        except (RuntimeError, TimeoutError, ValueError) as error:
            failed += 1
            state = f"FAILED, left as it was\n{error}"
        print(f"{time.perf_counter() - start:7.1f} s  {path}  {state}", flush=True)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
