"""Where a page first uses a word of the glossary, a link to it that says what it means.

Not on the page that explains the word, as the glossary says which one that is; and not
for words that everyone knows, or that stand on nearly every page.
"""

import re

from docutils import nodes
from sphinx import addnodes

GLOSSARY = "book/back-matter/glossary"
# Pages that are lists of words, names or works themselves.
WITHOUT = (
    GLOSSARY,
    "book/back-matter/api",
    "book/back-matter/bibliography",
    "book/back-matter/notation",
)
KNOWN = {
    "action", "attention", "clip", "discount", "episode", "epoch", "floor", "group",
    "leak", "padding", "policy", "probe", "prompt", "return", "reward", "sampling",
    "state", "temperature", "token", "tokenizer", "value", "vocabulary", "world",
}  # fmt: skip
# Text inside these is no running text, or leads somewhere already.
CLOSED = (
    nodes.Inline,
    nodes.literal_block,
    nodes.math_block,
    nodes.figure,
    nodes.table,
)
SIGNS = {
    r"\delta": "δ", r"\gamma": "γ", r"\lambda": "λ", r"\pi": "π", r"\rho": "ρ",
    r"\theta": "θ", r"\log": "log ", r"\mid": "|", r"\nabla": "∇",
}  # fmt: skip


def plain(definition):
    """The text of a definition, without formulas' commands and the section it names."""
    text = " ".join(definition.astext().split()).rpartition(" See ")[0]
    text = re.sub(r"\\text\{([^}]*)\}", r"\1", text)
    for command, sign in SIGNS.items():
        text = re.sub(re.escape(command) + r"(?![a-z])", sign, text)
    return re.sub(r"\s+", " ", re.sub(r"\\[a-z]+|[{}\\]", "", text))


def words(env):
    """Of each word: its id, what it means, and the page that explains it."""
    labels = env.get_domain("std").anonlabels
    found = {}
    for entry in env.get_doctree(GLOSSARY).findall(nodes.definition_list_item):
        definition = next(entry.findall(nodes.definition))
        *_, section = definition.findall(addnodes.pending_xref)
        page = labels[section["reftarget"]][0]
        for term in entry.findall(nodes.term):
            word = re.sub(r" \(.*\)", "", term.astext())
            if word not in KNOWN:
                found[word] = term["ids"][0], plain(definition), page
    return found


def pattern(word):
    """Finds the word alone; one in small letters also with an s, and capitalised."""
    look = re.escape(word)
    if word[0].islower():
        look = f"[{word[0]}{word[0].upper()}]{re.escape(word[1:])}s?"
    return re.compile(rf"(?<![\w-]){look}(?![\w-])")


def running_texts(doctree):
    """Texts of paragraphs, but what is emphasised, quoted, linked or computed."""
    for paragraph in doctree.findall(nodes.paragraph):
        above = paragraph.parent
        while above is not None and not isinstance(above, CLOSED):
            above = above.parent
        if above is None:
            for child in paragraph.children:
                if isinstance(child, nodes.Text):
                    yield child


def link_terms(app, doctree, docname):
    if app.builder.format != "html" or docname in WITHOUT:
        return
    if not hasattr(app.builder, "glossary_words"):  # once in a build
        app.builder.glossary_words = words(app.env)
    address = app.builder.get_relative_uri(docname, GLOSSARY)
    wanted = {
        word: (pattern(word), *about)
        for word, about in app.builder.glossary_words.items()
        if about[-1] != docname
    }
    done = set()
    for text in list(running_texts(doctree)):
        rest, pieces = str(text), []
        while True:
            hits = [
                (match.start(), -len(word), word, match)
                for word, (look, anchor, *_) in wanted.items()
                if anchor not in done and (match := look.search(rest))
            ]
            if not hits:
                break
            _, _, word, match = min(hits, key=lambda hit: hit[:2])
            _, anchor, meaning, _ = wanted[word]
            done.add(anchor)
            link = nodes.reference(
                "", match[0], internal=True, refuri=f"{address}#{anchor}",
                reftitle=meaning, classes=["term"],
            )  # fmt: skip
            pieces += [nodes.Text(rest[: match.start()]), link]
            rest = rest[match.end() :]
        if pieces:
            text.parent.replace(text, [*pieces, nodes.Text(rest)])


def setup(app):
    app.connect("doctree-resolved", link_terms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
