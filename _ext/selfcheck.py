"""Questions at the end of a page that answer back, without a server.

A question begins with `?`, a right answer with `+`, a wrong one with `-`, and what is
to be said to whoever chose an answer stands under it after `>`:

    ? Two and two?
    - Five.
      > One too many.
    + Four.
      > Yes.

Each is one line, of inline Markdown. In the page these are radio buttons: what is said
of the chosen answer is shown by the style sheet alone; `reader.js` counts.
"""

from typing import NamedTuple

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

QUESTIONS = 3


class Choice(NamedTuple):
    """An answer that can be chosen; `line` is its place in the text, from 0."""

    right: bool
    text: str
    feedback: str
    line: int


class Question(NamedTuple):
    text: str
    choices: list[Choice]
    line: int


def parse(lines):
    """The questions of a self-check.

    Raises ValueError, with the number of the line or the question, for a line that is
    none of the four, an answer without feedback, a question without exactly one right
    answer or without a wrong one, or other than three questions.
    """
    found: list[Question] = []
    for number, line in enumerate(lines):
        where = f"line {number + 1}"
        mark, text = line.strip()[:1], line.strip()[1:].strip()
        if not mark:
            continue
        if mark not in "?+->" or not text:
            raise ValueError(f"{where}: {line!r} does not start with ?, +, - or >")
        if mark == "?":
            found.append(Question(text, [], number))
        elif not found:
            raise ValueError(f"{where}: an answer before the first question")
        elif mark != ">":
            found[-1].choices.append(Choice(mark == "+", text, "", number))
        elif not found[-1].choices or found[-1].choices[-1].feedback:
            raise ValueError(f"{where}: feedback must follow an answer, once")
        else:
            found[-1].choices[-1] = found[-1].choices[-1]._replace(feedback=text)
    for question in found:
        asked = f"question {question.text!r}"
        right = sum(choice.right for choice in question.choices)
        if right != 1 or len(question.choices) < 2:
            raise ValueError(
                f"{asked} has {right} right answers of {len(question.choices)}: give "
                "one, and at least one wrong"
            )
        for choice in question.choices:
            if not choice.feedback:
                raise ValueError(f"{asked}: no feedback for {choice.text!r}")
    if len(found) != QUESTIONS:
        raise ValueError(f"{len(found)} questions: give {QUESTIONS}")
    return found


class selfcheck(nodes.General, nodes.Element):
    """All questions of a page."""


class selfcheck_question(nodes.General, nodes.Element):
    """One of them: its text first, then its choices."""


class selfcheck_text(nodes.General, nodes.TextElement):
    """Inline text of a question, an answer or feedback; `role` says of which."""


class SelfCheck(SphinxDirective):
    has_content = True

    def run(self):
        try:
            questions = parse(self.content)
        except ValueError as error:
            raise self.error(f"selfcheck: {error}") from None
        outer = selfcheck()
        for n, question in enumerate(questions, 1):
            inner = selfcheck_question(number=n)
            inner += self.inline(question.text, question.line, role="question")
            for k, choice in enumerate(question.choices, 1):
                about = {"key": f"check-{n}-{k}", "group": f"check-{n}"}
                right = choice.right
                inner += self.inline(
                    choice.text, choice.line, role="answer", right=right, **about
                )
                inner += self.inline(
                    choice.feedback,
                    choice.line + 1,
                    role="feedback",
                    right=right,
                    **about,
                )
            outer += inner
        return [outer]

    def inline(self, text, line, **attributes):
        parsed, messages = self.state.inline_text(text, self.content_offset + line + 1)
        return selfcheck_text("", "", *parsed, *messages, **attributes)


def visit_selfcheck(self, node):
    self.body.append('<div class="selfcheck">\n')


def depart_selfcheck(self, node):
    self.body.append('<p class="check-result" role="status"></p>\n</div>\n')


def visit_question(self, node):
    self.body.append("<fieldset>\n")


def depart_question(self, node):
    self.body.append("</fieldset>\n")


def visit_text(self, node):
    if node["role"] == "question":
        self.body.append("<legend>")
    elif node["role"] == "answer":
        value = "right" if node["right"] else "wrong"
        self.body.append(
            f'<div class="check-answer"><input type="radio" name="{node["group"]}" '
            f'id="{node["key"]}" value="{value}">'
            f'<label for="{node["key"]}">'
        )
    else:
        verdict = "\u2713 Right." if node["right"] else "\u2717 Not this."
        kind = "right" if node["right"] else "wrong"
        self.body.append(
            '<div class="check-said" aria-live="polite">'
            f'<p class="check-feedback {kind}"><strong>{verdict}</strong> '
        )


def depart_text(self, node):
    ends = {
        "question": "</legend>\n",
        "answer": "</label>\n",
        "feedback": "</p></div></div>\n",
    }
    self.body.append(ends[node["role"]])


def setup(app):
    app.add_node(selfcheck, html=(visit_selfcheck, depart_selfcheck))
    app.add_node(selfcheck_question, html=(visit_question, depart_question))
    app.add_node(selfcheck_text, html=(visit_text, depart_text))
    app.add_directive("selfcheck", SelfCheck)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
