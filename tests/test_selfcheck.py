"""The self-check's own language: what it reads, and what it refuses."""

import pytest
from selfcheck import parse

ONE = """
? Two and $two$?
- Five.
  > One too many.
+ Four.
  > Yes.
"""


def lines(text):
    return text.strip().splitlines()


def test_questions_answers_and_feedback_are_read_in_order():
    found = parse(lines(ONE * 3))
    assert [question.text for question in found] == ["Two and $two$?"] * 3
    wrong, right = found[1].choices
    assert (wrong.right, wrong.text, wrong.feedback) == (
        False, "Five.", "One too many.",
    )  # fmt: skip
    assert (right.right, right.text, right.feedback) == (True, "Four.", "Yes.")
    assert [question.line for question in found] == [0, 6, 12]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (ONE * 2, "2 questions"),
        (ONE * 4, "4 questions"),
        (ONE.replace("+", "-") * 3, "0 right answers of 2"),
        (ONE.replace("- ", "+ ") * 3, "2 right answers of 2"),
        ("? Why?\n+ So.\n  > Yes.\n" * 3, "1 right answers of 1"),
        (ONE.replace("  > Yes.\n", "") * 3, "no feedback for 'Four.'"),
        (ONE.replace("> Yes.", "> Yes.\n  > Sure.") * 3, "line 6.*once"),
        ("- Five.\n" + ONE * 3, "line 1.*before the first question"),
        (ONE + "Four." + ONE * 2, "line 6.*does not start with"),
        (ONE.replace("- Five.", "-") * 3, "line 2.*does not start with"),
        ("? Why?\n> So.\n" + ONE * 2, "line 2.*feedback must follow"),
    ],
)
def test_a_mistake_is_named_with_its_place(text, problem):
    with pytest.raises(ValueError, match=problem):
        parse(lines(text))
