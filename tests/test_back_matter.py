"""Notation, glossary, reference and errata: what they name is there."""

import ast
import importlib
import inspect
import re
from typing import get_origin

import nbformat
import pytest
from apidoc import to_rst
from test_book import BOOK, NOTEBOOKS
from test_layout import ROOMS, ROOT

BACK = BOOK / "back-matter"
SOURCES = sorted((ROOT / "tokrl").rglob("*.py"))


def read(name):
    return (BACK / name).read_text("utf8")


# --- glossary -------------------------------------------------------------------------


def entries():
    """(terms, text) of each entry of the glossary."""
    body = read("glossary.md").split("```{glossary}\n")[1].removesuffix("```\n")
    for block in body.strip().split("\n\n"):
        lines = block.splitlines()
        yield [line for line in lines if line[0] != " "], lines[-1].strip()


def pages():
    """{label: text of its page}, of the notebooks."""
    found = {}
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        label = re.match(r"\((ch-[\w-]+)\)=", cells[0].source)[1]
        found[label] = "\n".join(cell.source for cell in cells)
    return found


def test_each_term_has_a_chinese_name_a_meaning_and_a_page():
    found = list(entries())
    assert len(found) >= 80
    names = [terms[0].lower() for terms, _ in found]
    assert names == sorted(names)
    assert len(set(names)) == len(names)
    for terms, text in found:
        chinese, meaning = re.fullmatch(r"(Dr\. GRPO|[^.]+)\. (.*)", text).groups()
        latin = chinese in terms or re.fullmatch(r"[\w. ]*[\u4e00-\u9fff]+", chinese)
        assert latin, f"{terms[0]}: {chinese!r} is not Chinese"
        assert len(meaning.split()) > 5, terms[0]
        assert len(re.findall(r"\{ref\}`ch-[\w-]+`", text)) == 1, terms[0]


def test_the_page_of_a_term_speaks_of_it():
    texts = {label: text.lower() for label, text in pages().items()}
    for terms, text in entries():
        page = texts[re.search(r"\{ref\}`(ch-[\w-]+)`", text)[1]]
        words = [re.sub(r" \(.*", "", term).lower() for term in terms]
        # By its name, or by the last word of it: "off-policy" under "old policy".
        stems = [word[:6] for name in words for word in (name, name.split()[-1])]
        assert any(stem in page for stem in stems), f"{terms}: not on its page"


# --- notation -------------------------------------------------------------------------


def test_what_stands_in_the_column_of_code_is_in_the_code():
    known = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            for field in ("id", "attr", "arg", "name"):
                known.add(getattr(node, field, None))
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                known.add(node.value)
    logged = {f"{kind}/{n}" for kind in ("policy", "value") for n in known if n}
    rows = re.findall(r"^\| [^|]+ \| (`[^|]+`) \|", read("notation.md"), re.MULTILINE)
    rows += re.findall(r"^\| (`\w+/[^|]+`) \|", read("notation.md"), re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert len(names) > 50
    assert [name for name in names if name not in known | logged] == []


# --- reference ------------------------------------------------------------------------


def documented():
    return re.findall(r"automodule:: (tokrl[\w.]+)", read("api.md"))


def test_every_room_is_in_the_reference_in_its_order():
    rooms = [name.split(".")[1] for name in documented()]
    # What is called from the shell is not called from Python.
    assert list(dict.fromkeys(rooms)) == [r for r in ROOMS if r != "__main__"]


@pytest.mark.parametrize("module", documented())
def test_what_is_public_says_what_it_does(module):
    loaded = importlib.import_module(module)
    assert loaded.__doc__
    names = getattr(loaded, "__all__", None) or [
        name
        for name, value in vars(loaded).items()
        if getattr(value, "__module__", None) == module and name[0] != "_"
    ]
    for name in names:
        value = getattr(loaded, name)
        if get_origin(value) or not callable(value):
            continue  # the name of a type, such as `Callable[..., list]`, or a value
        assert inspect.getdoc(value), f"{module}.{name} has no docstring"
        if inspect.isclass(value):
            for own, method in vars(value).items():
                if own[0] != "_" and inspect.isfunction(method):
                    assert inspect.getdoc(getattr(value, own)), f"{name}.{own}"


def rst(text):
    """As it is read: lines, several blank ones as one."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(to_rst(text.splitlines()))).strip()


def test_a_docstring_becomes_paragraphs_definitions_and_literals():
    given = """What it does, with `code` and *stars* of B_t.

x            (B, T), the first
             and its second line
low, high    how far

    r = a * b

Returns y."""
    expected = """What it does, with ``code`` and \\*stars\\* of B\\_t.

``x``
   (B, T), the first and its second line
``low, high``
   how far

::

       r = a * b

Returns y."""
    assert rst(given) == expected


def test_a_table_within_a_table_stays_one():
    given = """kind       which of them:
  ppo      with a clip
           on both sides
  cispo    capped
weights    (B, T)"""
    expected = """``kind``
   which of them:

   ``ppo``
      with a clip on both sides
   ``cispo``
      capped

``weights``
   (B, T)"""
    assert rst(given) == expected


# --- errata ---------------------------------------------------------------------------


def test_each_bug_names_a_test_of_ours_that_would_fail():
    cells = nbformat.read(BACK / "errata.ipynb", as_version=4).cells
    text = "\n".join(cell.source for cell in cells)
    named = re.findall(r"`tests/(\w+)\.py::(\w+)`", text)
    bugs = [cell.id for cell in cells if re.fullmatch(r"bug-\w+", cell.id)]
    assert len(named) == len(bugs) >= 10
    for file, test in named:
        source = (ROOT / "tests" / f"{file}.py").read_text("utf8")
        assert f"def {test}(" in source, f"{file}::{test} is not there"


def test_nothing_in_the_package_evaluates_text():
    """A model writes whatever pays: what it wrote is read, never run."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile"), path
