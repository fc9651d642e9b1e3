"""The package's docstrings, which are laid out for reading in a terminal, as pages.

They have paragraphs, tables of names and what each means (`name  meaning`, the meaning
aligned, perhaps with a table of its own inside), and indented formulas. Here these
become paragraphs, definition lists and literal blocks of reStructuredText. Backticks
mean code.
"""

import re

# Names, two or more spaces, and what they mean.
FIELD = re.compile(r"(?P<names>\S[^`]{0,40}?) {2,}(?P<meaning>\S.*)$")
SPECIAL = re.compile(r"([\\*|_])")


def plain(text):
    """Text that means itself, but for code in backticks."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # an odd one out is no code
        return SPECIAL.sub(r"\\\1", text).replace("`", r"\`")
    out = SPECIAL.sub(r"\\\1", parts[0])
    for code, after in zip(parts[1::2], parts[2::2], strict=True):
        # What touches code without a space would keep it from being read as code.
        out += ("\\ " if out[-1:].isalnum() else "") + f"``{code}``"
        out += ("\\ " if after[:1].isalnum() else "") + SPECIAL.sub(r"\\\1", after)
    return out


def indent_of(line):
    return len(line) - len(line.lstrip())


def following(lines, start, deeper):
    """The end of the run of lines from `start` that are indented, blanks inside."""
    end = start
    for at in range(start, len(lines)):
        if lines[at].strip():
            if indent_of(lines[at]) < deeper:
                break
            end = at + 1
    return end


def dedented(lines):
    least = min((indent_of(line) for line in lines if line.strip()), default=0)
    return [line[least:] for line in lines]


def to_rst(lines):
    """Lines of reStructuredText for those of a docstring that starts at column 0."""
    out, at, in_table = [], 0, False
    while at < len(lines):
        line = lines[at]
        field = FIELD.match(line) if not line.startswith(" ") else None
        if not line.strip():
            out.append("")
            in_table = False
            at += 1
        elif line.startswith(" "):
            end = following(lines, at, 1)
            out += ["", "::", "", *("   " + row for row in lines[at:end]), ""]
            at = end
        elif field:
            end = at + 1
            while end < len(lines) and lines[end].startswith(" "):
                end += 1
            column, rest = field.start("meaning"), lines[at + 1 : end]
            own = 0  # lines that go on with the meaning, in its column
            while own < len(rest) and indent_of(rest[own]) >= column:
                own += 1
            text = " ".join([field["meaning"], *(row.strip() for row in rest[:own])])
            inner = to_rst(dedented(rest[own:])) if rest[own:] else []
            inner = inner[1:] if inner[:1] == [""] else inner
            if not in_table:
                out.append("")
            out += [f"``{field['names']}``", "   " + plain(text)]
            if inner:
                out += ["", *("   " + row if row else "" for row in inner), ""]
            in_table, at = True, end
        else:
            if in_table:
                out.append("")
                in_table = False
            out.append(plain(line))
            at += 1
    return out


def process(app, what, name, obj, options, lines):
    lines[:] = to_rst(lines)


def setup(app):
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
