"""What a reader finds around each page.

Where it stands in the book, how to run it, what a link to it looks like elsewhere; and
the script that remembers what was done.
"""

import html
import re
import shutil
from pathlib import Path

from docutils import nodes

HERE = Path(__file__).parent


def copy_script(app):
    if app.builder.format == "html":
        target = Path(app.outdir, "_static", "tokrl")
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy2(HERE / "reader.js", target)
        shutil.copy2(HERE / "preview.png", target)


def pages_in_order(env):
    """All pages as the table of contents lists them, the first page first."""
    order = []

    def go(page):
        order.append(page)
        for child in env.toctree_includes.get(page, []):
            if child not in order:
                go(child)

    go(env.config.root_doc)
    return order


def question_of(doctree):
    """The first paragraph of a page, which asks what the page answers."""
    for paragraph in doctree.findall(nodes.paragraph):
        return " ".join(paragraph.astext().split())
    return ""


def describe(app, pagename, templatename, context, doctree):
    """Tags for the picture and text that other programs show for a link.

    They want a full address. The book does not know its own until `html_baseurl` says
    it; until then the picture's is relative, which some of them accept.
    """
    if doctree is None:
        return
    title = re.sub("<[^>]*>", "", context.get("title", "")) or app.config.project
    base = (app.config.html_baseurl or "").rstrip("/")
    pathto = context["pathto"]
    picture = "_static/tokrl/preview.png"
    tags = {
        "og:type": "article",
        "og:site_name": app.config.html_title or app.config.project,
        "og:title": html.unescape(title),
        "og:description": question_of(doctree),
        "og:image": f"{base}/{picture}" if base else pathto(picture, 1),
        "og:image:alt": "tokrl: token-level reinforcement learning of language models",
        "twitter:card": "summary_large_image",
    }
    if base:
        tags["og:url"] = f"{base}/{pagename}.html"
    kinds = {True: "property", False: "name"}
    lines = [
        f'<meta {kinds[key.startswith("og:")]}="{key}" content="{html.escape(value)}">'
        for key, value in tags.items()
    ]
    lines.append(
        f'<meta name="description" content="{html.escape(question_of(doctree))}">'
    )
    context["metatags"] = context.get("metatags", "") + "\n".join(lines)


def place(app, pagename, templatename, context, doctree):
    """Under the title: the place of the page in the book, and how to run it."""
    app.add_js_file("tokrl/reader.js", loading_method="defer")
    # A list whose entries are no list items: docutils gives them a role of their own.
    context["body"] = context.get("body", "").replace(
        '<div role="list" class="citation-list">', '<div class="citation-list">'
    )
    order = pages_in_order(app.env)
    if doctree is None or pagename not in order[1:]:
        return
    number, count = order.index(pagename), len(order) - 1
    parts = [
        f'<p class="page-place"><label>Page {number} of {count} '
        f'<progress max="{count}" value="{number}"></progress></label></p>'
    ]
    if str(app.env.doc2path(pagename)).endswith(".ipynb"):
        notebook = f"{pagename.removeprefix('book/')}.ipynb"
        command = f"make run CHAPTER=book/{notebook}"
        parts.append(
            '<details class="page-run"><summary>Run this page</summary>'
            "<p>In the folder of the project type <code>make lab</code>; when "
            f"JupyterLab has opened, choose <code>{notebook}</code> and run it. "
            "To run it without a browser, and see by <code>git diff</code> whether "
            f"anything differs: <code>{command}</code> "
            f'<button type="button" class="run-copy" data-text="{command}">'
            "Copy</button></p></details>"
        )
    context["body"] = context["body"].replace(
        "</h1>", '</h1>\n<div class="page-head">' + "".join(parts) + "</div>", 1
    )


def setup(app):
    app.connect("builder-inited", copy_script)
    app.connect("html-page-context", describe)
    app.connect("html-page-context", place)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
