"""What nbval does not see in the notebooks, and what every section must have."""

import ast
import copy
import re

import nbformat
import pytest
import yaml
from selfcheck import parse
from test_layout import MACHINE_PATH, ROOT

BOOK = ROOT / "book"
NOTEBOOKS = sorted(
    path for path in BOOK.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
)

# --- the checks: each takes a notebook and yields its problems ------------------------


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def markdown_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


def outputs(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            yield cell, output


def tags(cell):
    return set(cell.metadata.get("tags", []))


def kernel_is_python3(notebook):
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel is not python3"


def ids_are_written_by_hand(notebook):
    seen = set()
    for cell in notebook.cells:
        # Editors invent eight hexadecimal digits, or a UUID.
        if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f-]+)?", cell.id):
            yield f"{cell.id}: an editor's id, give the cell a name"
        elif not re.fullmatch(r"[a-z][a-z0-9-]*", cell.id):
            yield f"{cell.id}: ids are lower-case words joined by hyphens"
        if cell.id in seen:
            yield f"{cell.id}: two cells have this id"
        seen.add(cell.id)


def title_has_a_label(notebook):
    first = notebook.cells[0]
    if not re.match(r"\(ch-[a-z0-9-]+\)=\n# \S", first.source):
        yield f"{first.id}: the first cell must be '(ch-...)=' and then '# Title'"


def cells_ran_in_order(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are {counts}: run it with `make run`"


def errors_are_announced(notebook):
    for cell, output in outputs(notebook):
        if output.output_type == "error" and "raises-exception" not in tags(cell):
            yield f"{cell.id}: stores an error and has no tag raises-exception"


def announced_errors_happen(notebook):
    for cell in code_cells(notebook):
        kinds = [output.output_type for output in cell.outputs]
        if "raises-exception" in tags(cell) and "error" not in kinds:
            yield f"{cell.id}: tagged raises-exception, but nothing was raised"


def stderr_is_empty(notebook):
    for cell, output in outputs(notebook):
        if output.get("name") == "stderr":
            yield f"{cell.id}: stores stderr"


def no_trailing_semicolon(notebook):
    for cell in code_cells(notebook):
        if cell.source.rstrip().endswith(";"):
            yield f"{cell.id}: ends in ';', which nbval does not honour: assign to _"


def code_fits_the_page(notebook):
    for cell in code_cells(notebook):
        for number, line in enumerate(cell.source.splitlines(), 1):
            if len(line) > 76:
                yield f"{cell.id}: line {number} has {len(line)} characters of 76"


def public_names():
    """Functions and classes that a reader can import from tokrl.

    Those of `tokrl.apps` and `tokrl.pretrained` have short names, for they are called
    by their module's: `translation.prompt`.
    """
    for path in (ROOT / "tokrl").rglob("*.py"):
        if path.parent.name in ("apps", "pretrained"):
            continue
        for node in ast.parse(path.read_text("utf8")).body:
            definition = isinstance(node, (ast.FunctionDef, ast.ClassDef))
            if definition and not node.name.startswith("_"):
                yield node.name


PUBLIC_NAMES = frozenset(public_names())


def chapters_import(notebook, names=PUBLIC_NAMES):
    definition = re.compile(r"^\s*(?:def|class)\s+(\w+)", re.MULTILINE)
    for cell in code_cells(notebook):
        for name in definition.findall(cell.source):
            if name in names:
                yield f"{cell.id}: defines {name}, which tokrl has: import it"


def outputs_name_no_machine(notebook):
    for cell, output in outputs(notebook):
        texts = [output.get("text", ""), output.get("evalue", "")]
        texts += output.get("traceback", [])
        texts += [
            data
            for kind, data in output.get("data", {}).items()
            if isinstance(data, str) and not kind.startswith("image/png")
        ]
        for text in texts:
            if found := MACHINE_PATH.search(text):
                yield f"{cell.id}: the output holds a path of this machine: {found[0]}"


def pictures_have_a_text(notebook):
    for cell, output in outputs(notebook):
        image = cell.metadata.get("mystnb", {}).get("image", {})
        if "image/png" in output.get("data", {}) and not image.get("alt"):
            yield f"{cell.id}: no cell metadata mystnb.image.alt for its picture"


def announced_pictures_appear(notebook):
    for cell in code_cells(notebook):
        kinds = [kind for output in cell.outputs for kind in output.get("data", {})]
        if cell.metadata.get("mystnb", {}).get("image") and "image/png" not in kinds:
            yield f"{cell.id}: has a text for a picture, and stores no picture"


def directives(notebook, name):
    """(argument, options) of each directive `name`, in any fence, in any cell."""
    opening = re.compile(
        rf"^[ \t]*(?:`{{3,}}|:{{3,}})\{{{name}\}}[ \t]*(.*)\n((?:[ \t]*:\w+:.*\n?)*)",
        re.MULTILINE,
    )
    for cell in markdown_cells(notebook):
        for argument, options in opening.findall(cell.source):
            pairs = re.findall(r":(\w+):[ \t]*(.*)", options)
            yield argument.strip(), {key: value.strip() for key, value in pairs}


def exercises_have_solutions(notebook):
    labels = []
    for _, options in directives(notebook, "exercise(?:-start)?"):
        if "label" in options:
            labels.append(options["label"])
        else:
            yield "an exercise has no label"
    solved = list(directives(notebook, "solution(?:-start)?"))
    for label, options in solved:
        if label not in labels:
            yield f"a solution is for {label!r}, and this notebook has no such exercise"
        if "dropdown" not in options.get("class", "").split():
            yield f"the solution of {label} lacks ':class: dropdown'"
    for label in labels:
        if [argument for argument, _ in solved].count(label) != 1:
            yield f"exercise {label} needs one solution"


def ignored_outputs_have_a_reason(notebook):
    comments = re.compile(r"#\s*NBVAL_(?:IGNORE_OUTPUT|SKIP)")
    for cell in code_cells(notebook):
        ignored = tags(cell) & {"nbval-ignore-output", "nbval-skip"}
        if comments.search(cell.source):
            yield f"{cell.id}: use the tag nbval-ignore-output, not the comment"
        if ignored and not cell.metadata.get("reason"):
            yield f"{cell.id}: {ignored} without a 'reason' in its metadata"


def charts_are_described(notebook):
    for cell in markdown_cells(notebook):
        for chart in re.findall(r"```\{?mermaid\}?\n(.*?)```", cell.source, re.DOTALL):
            for part in ("accTitle:", "accDescr"):
                if part not in chart:
                    yield f"{cell.id}: its chart has no {part.rstrip(':')}"


def tables_have_headers(notebook):
    header = re.compile(r"^\|(.*)\|[ \t]*\n\|[ \t]*:?-", re.MULTILINE)
    for cell in markdown_cells(notebook):
        for row in header.findall(cell.source):
            if any(not name.strip() for name in row.split("|")):
                yield f"{cell.id}: a table has an empty header cell"


def ends_with_a_self_check(notebook):
    if notebook.cells[0].source.startswith("(ch-index)="):
        return  # the first page asks nothing
    last = notebook.cells[-1]
    found = re.fullmatch(
        r"## Check yourself\n\n```\{selfcheck\}\n(.*)```", last.source, re.DOTALL
    )
    if last.id != "self-check" or not found:
        yield f"{last.id}: the last cell must be `self-check`, see CONTRIBUTING.md"
        return
    try:
        parse(found[1].splitlines())
    except ValueError as error:
        yield f"self-check: {error}"


CHECKS = [
    kernel_is_python3,
    ids_are_written_by_hand,
    title_has_a_label,
    cells_ran_in_order,
    errors_are_announced,
    announced_errors_happen,
    stderr_is_empty,
    no_trailing_semicolon,
    code_fits_the_page,
    chapters_import,
    outputs_name_no_machine,
    pictures_have_a_text,
    announced_pictures_appear,
    exercises_have_solutions,
    ignored_outputs_have_a_reason,
    charts_are_described,
    tables_have_headers,
    ends_with_a_self_check,
]

# --- the book passes them -------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: str(p.relative_to(BOOK)))
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_notebook(check, path):
    assert list(check(nbformat.read(path, as_version=4))) == []


def pages_of(toc):
    """Every `file` and `root` of a table of contents, without its ending."""
    if isinstance(toc, list):
        return [page for part in toc for page in pages_of(part)]
    if isinstance(toc, dict):
        own = [toc[key] for key in ("root", "file") if key in toc]
        return own + [page for part in toc.values() for page in pages_of(part)]
    return []


def test_every_page_is_in_the_table_of_contents():
    listed = pages_of(yaml.safe_load((ROOT / "_toc.yml").read_text("utf8")))
    texts = [path for path in BOOK.rglob("*.md") if not path.match("*.zh.md")]
    there = [str(path.relative_to(ROOT).with_suffix("")) for path in NOTEBOOKS + texts]
    assert sorted(listed) == sorted(set(there))


# --- and each of them can fail --------------------------------------------------------

HOME = "/" + "home/anna"  # in parts, so that this file passes the layout test
SOUND = {
    "title": "(ch-sound)=\n# A sound page",
    "chart": "```{mermaid}\ngraph TD\naccTitle: Map\naccDescr: A to B\nA-->B\n```",
    "table": "| a | b |\n|--|--|\n| 1 | |",
    "task": "```{exercise} Why\n:label: ex-why\n\nWhy?\n```",
    "answer": "````{solution} ex-why\n:label: so-why\n:class: dropdown\n\nSo.\n````",
}


ASKED = (
    "## Check yourself\n\n```{selfcheck}\n"
    + "? Why?\n+ So.\n  > Yes.\n- Not so.\n  > No.\n" * 3
    + "```"
)


def sound_notebook():
    notebook = nbformat.v4.new_notebook()
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    for name, text in SOUND.items():
        notebook.cells.append(nbformat.v4.new_markdown_cell(text, id=name))
    for count, name in enumerate(["first", "figure", "failing"], 1):
        cell = nbformat.v4.new_code_cell("x = 1", id=name, execution_count=count)
        notebook.cells.append(cell)
    first, figure, failing = notebook.cells[-3:]
    notebook.cells.append(nbformat.v4.new_markdown_cell(ASKED, id="self-check"))
    first.outputs = [nbformat.v4.new_output("stream", name="stdout", text="1 / 2")]
    figure.metadata.mystnb = {"image": {"alt": "a falling line"}}
    figure.outputs = [nbformat.v4.new_output("display_data", {"image/png": HOME})]
    failing.metadata.tags = ["raises-exception"]
    failing.outputs = [nbformat.v4.new_output("error", ename="E", evalue="no")]
    return notebook


def planted(path, value):
    """A function that sets one place of a notebook: planted("first.source", "...")."""
    name, *keys = path.split(".")

    def plant(notebook):
        place = next((c for c in notebook.cells if c.id == name), notebook)
        for key in keys[:-1]:
            place = place[int(key) if key.isdigit() else key]
        place[keys[-1]] = value

    return plant


def stream(name, text):
    return [nbformat.v4.new_output("stream", name=name, text=text)]


PLANTED = [
    (kernel_is_python3, planted("notebook.metadata.kernelspec.name", "conda-env")),
    (ids_are_written_by_hand, planted("first.id", "1f3a9c0e")),
    (ids_are_written_by_hand, planted("first.id", "figure")),
    (ids_are_written_by_hand, planted("first.id", "First_Cell")),
    (title_has_a_label, planted("title.source", "# A page")),
    (title_has_a_label, planted("title.source", "(sec-x)=\n# A page")),
    (cells_ran_in_order, planted("first.execution_count", 7)),
    (cells_ran_in_order, planted("first.execution_count", None)),
    (errors_are_announced, planted("failing.metadata.tags", [])),
    (announced_errors_happen, planted("failing.outputs", [])),
    (stderr_is_empty, planted("first.outputs", stream("stderr", "beware"))),
    (no_trailing_semicolon, planted("first.source", "plot();\n")),
    (code_fits_the_page, planted("first.source", "x" * 77)),
    (chapters_import, planted("first.source", f"def {min(PUBLIC_NAMES)}(): pass")),
    (chapters_import, planted("first.source", f"class {max(PUBLIC_NAMES)}: pass")),
    (outputs_name_no_machine, planted("first.outputs", stream("stdout", HOME))),
    (outputs_name_no_machine, planted("failing.outputs.0.evalue", f"no {HOME}")),
    (outputs_name_no_machine, planted("failing.outputs.0.traceback", [f"'{HOME}'"])),
    (pictures_have_a_text, planted("figure.metadata.mystnb", {})),
    (announced_pictures_appear, planted("figure.outputs", stream("stdout", "1"))),
    (exercises_have_solutions, planted("answer.source", "")),
    (exercises_have_solutions, planted("task.source", "```{exercise}\nWhy?\n```")),
    (
        exercises_have_solutions,
        planted("answer.source", SOUND["answer"].replace(":class: dropdown\n", "")),
    ),
    (
        exercises_have_solutions,
        planted("answer.source", SOUND["answer"].replace("ex-why", "ex-what")),
    ),
    (
        ignored_outputs_have_a_reason,
        planted("first.metadata.tags", ["nbval-ignore-output"]),
    ),
    (ignored_outputs_have_a_reason, planted("first.source", "# NBVAL_IGNORE_OUTPUT")),
    (
        charts_are_described,
        planted("chart.source", SOUND["chart"].replace("accDescr", "descr")),
    ),
    (tables_have_headers, planted("table.source", "| | b |\n|--|--|\n| 1 | 2 |")),
    (ends_with_a_self_check, planted("self-check.id", "check")),
    (ends_with_a_self_check, planted("self-check.source", ASKED.replace("+", "-"))),
    (ends_with_a_self_check, planted("self-check.source", "## Check yourself")),
]


def test_the_sound_notebook_has_no_problem():
    assert [problem for check in CHECKS for problem in check(sound_notebook())] == []


def test_every_check_has_a_planted_violation():
    assert {check for check, _ in PLANTED} == set(CHECKS)


@pytest.mark.parametrize(("check", "plant"), PLANTED)
def test_planted_violation(check, plant):
    notebook = sound_notebook()
    before = copy.deepcopy(notebook)
    plant(notebook)
    assert notebook != before
    assert list(check(notebook)) != []
