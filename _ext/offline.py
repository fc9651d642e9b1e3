"""Put MathJax, Mermaid and fonts into the built site, so that it asks no other host."""

import re
import shutil
from pathlib import Path

from sphinx.errors import ExtensionError

# target folder in _static -> (folder in node_modules, what of it)
COPIES = {
    "mathjax": (
        "mathjax/es5",
        [
            "tex-mml-chtml.js",
            "output/chtml/fonts/woff-v2",
            "input/tex/extensions",
            # Loaded when a reader turns on MathJax's screen reader support.
            "a11y",
            "sre/mathmaps",
        ],
    ),
    "mermaid": ("mermaid/dist", ["mermaid.min.js"]),
    "fonts": (
        "@fontsource-variable",
        [
            "source-code-pro/files/source-code-pro-latin-wght-normal.woff2",
            "source-sans-3/files/source-sans-3-latin-wght-normal.woff2",
            "source-serif-4/files/source-serif-4-latin-ext-wght-normal.woff2",
            "source-serif-4/files/source-serif-4-latin-wght-italic.woff2",
            "source-serif-4/files/source-serif-4-latin-wght-normal.woff2",
        ],
    ),
}

MODULE_IMPORT = re.compile(r'^import mermaid from "[^"]*";', re.MULTILINE)
# The theme for Python 3.10 also has browsers fetch icon fonts that a page does not use.
ICONS = re.compile(
    r'[ \t]*(<script[^>]*fontawesome[^>]*></script>|<link[^>]* as="font"[^>]*>)\n?'
)
# sphinxcontrib-mermaid blows every chart up to the width of the page.
BLOWN_UP = "max-width: 100% !important;"


def copy_scripts(app):
    if app.builder.format != "html":
        return
    for target, (source, names) in COPIES.items():
        source_root = Path(app.srcdir, "node_modules", source)
        for name in names:
            origin = source_root / name
            copy = Path(app.outdir, "_static", target, name.split("files/")[-1])
            if not origin.exists():
                raise ExtensionError(f"{origin} is missing: run `make setup`")
            copy.parent.mkdir(parents=True, exist_ok=True)
            if origin.is_dir():
                shutil.copytree(origin, copy, dirs_exist_ok=True)
            else:
                shutil.copy2(origin, copy)


def plain_mermaid(app, pagename, templatename, context, doctree):
    """Load Mermaid by a plain script tag instead of a module import.

    Browsers refuse module imports on pages opened straight from the disk, and that is
    how many readers open a site they built themselves.
    """
    for script in context["script_files"]:
        body = script.attributes.get("body") or ""
        if MODULE_IMPORT.search(body):
            script.attributes["body"] = MODULE_IMPORT.sub("", body).replace(
                BLOWN_UP, ""
            )
            app.add_js_file(app.config.mermaid_use_local, priority=script.priority - 1)
            return


def no_thebe(app, pagename, templatename, context, doctree):
    """Drop the scripts of Thebe, which Jupyter Book loads even where it is not used.

    They name a foreign host, and being added twice they fail with an error.
    """
    for files in (context["script_files"], context["css_files"]):
        files[:] = [f for f in files if "thebe" not in str(f).lower()]


def one_set_of_icons(app, exception):
    """Take out the theme's icons as a script: it has them as a font as well.

    The script is half a megabyte on each page, compressed, and draws the same.
    """
    if exception or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text("utf8")
        if (less := ICONS.sub("", text)) != text:
            page.write_text(less, "utf8")
    static = Path(app.outdir, "_static")
    (static / "scripts/fontawesome.js").unlink(missing_ok=True)
    for script in static.glob("vendor/fontawesome/*/js/*"):
        script.unlink()


def setup(app):
    app.connect("builder-inited", copy_scripts)
    app.connect("build-finished", one_set_of_icons)
    # After the extensions (500) have added their scripts.
    app.connect("html-page-context", plain_mermaid, priority=900)
    app.connect("html-page-context", no_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
