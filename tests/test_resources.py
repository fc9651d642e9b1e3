"""Each entry of the bibliography has a line on what to read it for."""

import re
from collections import Counter

import nbformat
from test_book import BOOK


def entries():
    text = (BOOK / "references.bib").read_text("utf8")
    return re.findall(r"^@\w+\{(\w+),", text, re.MULTILINE)


def lines():
    """(key, what it is to be read for)"""
    for cell in nbformat.read(BOOK / "07-tools" / "resources.ipynb", 4).cells:
        yield from re.findall(
            r"^- \{cite:t\}`(\w+)`: (.+)\.$", cell.source, re.MULTILINE
        )


def test_each_entry_has_one_line_and_each_line_an_entry():
    counted = Counter(key for key, _ in lines())
    assert sorted(counted) == sorted(entries())
    assert set(counted.values()) == {1}


def test_no_entry_stands_twice():
    assert [key for key, n in Counter(entries()).items() if n > 1] == []


def test_a_line_says_more_than_a_title():
    assert [key for key, text in lines() if len(text) < 15] == []
    assert len({text for _, text in lines()}) == len(list(lines()))
