"""The built site is whole and asks no other host for anything."""

import functools
import gzip
import json
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import find_chromium, open_page
from bs4 import BeautifulSoup
from serve import make_server
from test_layout import ROOT

# Attributes whose address the browser fetches by itself; an <a href> waits for a click.
FETCHED = {
    ("audio", "src"),
    ("embed", "src"),
    ("iframe", "src"),
    ("img", "src"),
    ("input", "src"),
    ("object", "data"),
    ("script", "src"),
    ("source", "src"),
    ("track", "src"),
    ("video", "poster"),
    ("video", "src"),
}
# Of <link>, only these are words about the page; the others are fetched.
LINKS_FOR_PEOPLE = {"author", "canonical", "index", "license", "next", "prev", "search"}
HOST = r"""["']?((?:https?:)?//[^"')\s]+)"""
IN_STYLES = re.compile(r"(?:@import\s+|url\(\s*)" + HOST)
IN_SCRIPTS = re.compile(r"(?<!@)\b(?:from|import)\s*\(?\s*" + HOST)
CSS_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)


class References(HTMLParser):
    """The addresses and the anchors of one page."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.clicked, self.anchors = [], [], set()
        self.code = ""
        self.inside_code = False
        self.feed(text)
        self.fetched += IN_STYLES.findall(self.code) + IN_SCRIPTS.findall(self.code)

    def handle_starttag(self, tag, attributes):
        values = {name: value or "" for name, value in attributes}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.inside_code = tag in ("script", "style")
        self.code += f"\n{values.get('style', '')}\n"
        if tag == "a" and "href" in values:
            self.clicked.append(values["href"])
        if tag == "link" and not set(values.get("rel", "").split()) & LINKS_FOR_PEOPLE:
            self.fetched.append(values.get("href", ""))
        self.fetched += [values[name] for name in values if (tag, name) in FETCHED]
        for candidate in values.get("srcset", "").split(","):
            self.fetched += candidate.split()[:1]

    def handle_endtag(self, tag):
        self.inside_code = False

    def handle_data(self, data):
        if self.inside_code:
            self.code += data


def is_foreign(address):
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme in ("http", "https", "ws", "wss")


def pages_of(site):
    """Every page; below _static lie only pieces of the theme."""
    found = site.rglob("*.html")
    return sorted(p for p in found if "_static" not in p.relative_to(site).parts)


def read_html(page):
    return BeautifulSoup(page.read_text("utf8"), "html.parser")


def foreign_fetches(site):
    for page in pages_of(site):
        for address in References(page.read_text("utf8")).fetched:
            if is_foreign(address):
                yield f"{page.relative_to(site)} fetches {address}"
    for sheet in site.rglob("*.css"):
        text = CSS_COMMENT.sub("", sheet.read_text("utf8"))
        for address in IN_STYLES.findall(text):
            yield f"{sheet.relative_to(site)} fetches {address}"


def missing_targets(site):
    found = {page: References(page.read_text("utf8")) for page in pages_of(site)}
    for page, references in found.items():
        for address in references.fetched + references.clicked:
            parts = urlsplit(address)
            if is_foreign(address) or parts.scheme:
                continue
            target = (page.parent / unquote(parts.path)).resolve()
            if not parts.path:
                target = page
            if target.is_dir():
                target /= "index.html"
            if not target.is_file():
                yield f"{page.relative_to(site)} points to {address}: no such file"
            elif parts.fragment and target in found:
                anchors = found[target].anchors
                if unquote(parts.fragment) not in anchors:
                    yield f"{page.relative_to(site)} points to {address}: no such place"


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The book, built the way `make book` does it."""
    folder = tmp_path_factory.mktemp("site").resolve()
    command = [Path(sys.executable).with_name("jupyter-book"), "build", ROOT]
    options = ["--path-output", folder, "-W", "-n", "--keep-going", "-q"]
    answer = subprocess.run([*command, *options], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return folder / "_build" / "html"


def test_no_page_fetches_from_another_host(site):
    assert len(pages_of(site)) > 3
    assert list(foreign_fetches(site)) == []


def test_every_local_reference_leads_somewhere(site):
    assert list(missing_targets(site)) == []


def test_every_notebook_can_be_downloaded(site):
    for notebook in (ROOT / "book").rglob("*.ipynb"):
        if ".ipynb_checkpoints" not in notebook.parts:
            copy = site / "_sources" / notebook.relative_to(ROOT)
            assert copy.read_bytes() == notebook.read_bytes()


# --- in a browser ---------------------------------------------------------------------

needs_chromium = pytest.mark.skipif(
    find_chromium() is None, reason="Chromium is not installed"
)


@contextmanager
def served(folder):
    with make_server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def reported_problems(page, host):
    """What the browser had to say about the page that was just visited."""
    for event in page.of("Network.requestWillBeSent"):
        address = event["request"]["url"]
        if is_foreign(address) and urlsplit(address).netloc != host:
            yield f"asked another host: {address}"
    for event in page.of("Network.responseReceived"):
        if event["response"]["status"] >= 400:
            yield f"{event['response']['status']}: {event['response']['url']}"
    for event in page.of("Runtime.exceptionThrown"):
        details = event["exceptionDetails"]
        yield f"exception: {details.get('exception', details).get('description')}"
    for event in page.of("Runtime.consoleAPICalled"):
        if event["type"] in ("error", "assert"):
            yield f"console: {[a.get('value') for a in event['args']]}"
    for event in page.of("Log.entryAdded"):
        if event["entry"]["level"] == "error":
            yield f"log: {event['entry']['text']} {event['entry'].get('url', '')}"


# Run in the page: a list of complaints.
LOOK = """[
  ...[...document.querySelectorAll(".mermaid")]
    .filter(e => !e.querySelector("svg") || e.querySelector(".error-icon"))
    .map(e => "chart not drawn: " + e.textContent.trim().slice(0, 60)),
  ...[...document.querySelectorAll("div.math, span.math")]
    .filter(e => !e.querySelector("mjx-container"))
    .map(e => "formula not set: " + e.textContent.slice(0, 60)),
  ...[...document.querySelectorAll("mjx-merror, [data-mjx-error]")]
    .map(e => "formula in error: " + e.textContent.slice(0, 60)),
  ...[...document.querySelectorAll("img")]
    .filter(e => !e.complete || !e.naturalWidth)
    .map(e => "picture not shown: " + e.src),
]"""


def looks(page, patience=15):
    """What is to be seen amiss once the scripts had time to draw."""
    deadline = time.monotonic() + patience
    while (found := page.evaluate(LOOK)) and time.monotonic() < deadline:
        page.listen(0.2)
    return found


TOO_WIDE = "Math.max(0, document.documentElement.scrollWidth - window.innerWidth)"
CHART_LINKS = """[...document.querySelectorAll(".mermaid a")]
  .map(a => new URL(a.getAttribute("href") || a.getAttribute("xlink:href"),
                    location.href).href)"""


# Contrast depends on how a text looks and on what lies behind it. Of texts in sight
# that are alike in both a few are read; none whose look is known from another page.
ALIKE = """(known => {
  const places = new Map([[null, ["", ""]]]), seen = {};
  const behind = e => {             // what is painted there, and what is done to it
    if (!places.has(e)) {
      const [paint, effects] = behind(e.parentElement), own = getComputedStyle(e);
      const {backgroundColor: color, backgroundImage: image} = own;
      const usual = own.opacity === "1" && own.filter === "none";
      const effect = usual ? "" : own.opacity + own.filter;
      const covers = color.startsWith("rgb(") && image === "none" && usual;
      const layer = (color + image).replace("rgba(0, 0, 0, 0)none", "");
      places.set(e, [covers ? color : paint + layer, effects + effect]);
    }
    return places.get(e);
  };
  for (const e of document.querySelectorAll("[data-alike]")) delete e.dataset.alike;
  for (const e of document.body.querySelectorAll("*")) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    if (!e.checkVisibility({visibilityProperty: true, opacityProperty: true})) continue;
    const own = getComputedStyle(e), around = getComputedStyle(e.parentElement).color;
    const bold = own.fontWeight >= 700;
    const large = parseFloat(own.fontSize) >= (bold ? 18.7 : 24);
    const link = e.matches("a[href]") && around + own.textDecoration;
    const look = [behind(e), own.color, bold, large, own.textShadow, link].join();
    if (look.includes("gradient")) {e.dataset.alike = ""; continue;}  // axe cannot tell
    seen[look] = (seen[look] || 0) + 1;
    if (known.includes(look) || seen[look] > 3) e.dataset.alike = "";
  }
  return Object.keys(seen).filter(look => !known.includes(look));
})(%s)"""
ONCE = """axe.configure({rules: [
  {id: "color-contrast", selector: ":not([data-alike])"},
  {id: "link-in-text-block", selector: "a[href]:not([data-alike])"},
  {id: "region", enabled: false},  // of moderate impact at most, and slow
]})"""
AXE = """axe.run(document, {resultTypes: ["violations"], ...%s}).then(
  found => found.violations
    .filter(v => ["serious", "critical"].includes(v.impact))
    .flatMap(v => v.nodes.map(
      n => [v.id, n.target.flat().join(" "), n.html.slice(0, 120)])))
"""
LIGHTEST = 2_500_000


# Glyphs of formulas are hidden from screen readers, who get MathML beside them, and
# colours of code are spans without a role: for all rules but those of contrast they are
# nothing, and on most pages they are two thirds of the elements. Whatever else stands
# among them, a link or what can have the focus, stays with all that is around it.
PLAIN = """
document.querySelectorAll(
  "mjx-math[aria-hidden=true]:not(:has(a, button, input, [tabindex]))"
).forEach(e => e.replaceChildren());
document.querySelectorAll(".highlight pre:not(:has(:not(span), [role], [tabindex]))")
  .forEach(e => {e.textContent = e.textContent});
"""
OF_CONTRAST = ["color-contrast", "link-in-text-block"]


def barriers(page, known=None):
    """What axe-core finds serious or critical, in light and in dark.

    known  looks of text whose contrast was read before; those of this page are added
    The page has lost its formulas and the colours of its code when this ends.
    """
    known = set() if known is None else known
    page.evaluate((ROOT / "node_modules/axe-core/axe.min.js").read_text("utf8") + ";0")
    page.evaluate(ONCE)
    for mode in ("light", "dark"):
        page.evaluate(f"document.documentElement.dataset.theme = {mode!r}")
        if new := page.evaluate(ALIKE % json.dumps(sorted(known))):
            known.update(new)
            yield from found_by_axe(page, mode, {"runOnly": OF_CONTRAST})
    page.evaluate("document.documentElement.dataset.theme = 'light'")
    page.evaluate(PLAIN)
    others = {rule: {"enabled": False} for rule in OF_CONTRAST}
    yield from found_by_axe(page, "light", {"rules": others})


def found_by_axe(page, mode, options):
    for rule, target, html in page.evaluate(AXE % json.dumps(options)):
        yield f"{mode}: {rule}: {target}: {html}"


@functools.cache
def compressed(file):
    return len(gzip.compress(file.read_bytes(), 6))


def weight(page, site):
    """Bytes that the first visit to a page takes from a server that compresses."""
    total = 0
    for event in page.of("Network.responseReceived"):
        path = unquote(urlsplit(event["response"]["url"]).path).lstrip("/")
        if path and (file := site / path).is_file():
            total += compressed(file)
    return total


def test_words_of_the_glossary_say_what_they_mean(site):
    """Once on a page, at the first use, and not on the page that explains the word."""
    glossary = site / "book/back-matter/glossary.html"
    terms = {
        term["id"]: (term, term.find_next("dd"))
        for term in read_html(glossary).select("dt[id^=term-]")
    }
    seen = set()
    for page in pages_of(site):
        links = read_html(page).select("article a.term")
        targets = [urlsplit(link["href"]).fragment for link in links]
        assert len(targets) == len(set(targets)), page
        for link, target in zip(links, targets, strict=True):
            term, meaning = terms[target]
            word = link.text.removesuffix("s").lower()
            others = [other.text for other in term.parent.find_all("dt")]
            assert word in " ".join(others).lower(), (page, link)
            assert len(link["title"]) > 10, link
            assert link["title"][:2] == meaning.text.strip()[:2], link
            last = meaning.find_all("a")[-1]["href"].partition("#")[0]
            explained = (glossary.parent / last).resolve()
            assert explained != page.resolve(), (page, link)
        seen.update(targets)
    assert len(seen) > 40
    assert not list(read_html(glossary).select("article a.term"))


@needs_chromium
def test_every_page_in_a_browser(site):
    problems, looks_read = [], set()
    with served(site) as host, open_page() as page:
        for file in pages_of(site):
            name = file.relative_to(site).as_posix()
            page.resize(1280, 900)
            page.visit(f"http://{host}/{name}")
            found = [*looks(page), *reported_problems(page, host)]
            if (size := weight(page, site)) > LIGHTEST:
                found.append(f"{size:,} bytes on the first visit, compressed")
            for link in page.evaluate(CHART_LINKS):
                inside = urlsplit(link).netloc == host
                if inside and not (site / urlsplit(link).path[1:]).is_file():
                    found.append(f"a chart points to {link}: no such file")
            for width in (1280, 390):
                page.resize(width, 900)
                if extra := page.evaluate(TOO_WIDE):
                    found.append(f"{extra} px too wide for a screen of {width} px")
            page.resize(1280, 900)
            found += barriers(page, looks_read)
            problems += [f"{name}: {problem}" for problem in found]
    assert problems == []


def announced(page):
    """Texts that stand in a place whose changes a screen reader says aloud."""
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    by_id = {node["nodeId"]: node for node in nodes}

    def text(node):
        if node["role"]["value"] == "StaticText":
            return node["name"]["value"]
        inner = [by_id[i] for i in node.get("childIds", []) if i in by_id]
        return "".join(text(child) for child in inner)

    for node in nodes:
        for about in node.get("properties", []):
            if about["name"] == "live" and about["value"]["value"] == "polite":
                yield text(node)


# Code and links that are hard to read where they stand: contrast below 4.5.
PALE = """(() => {
  const light = color => {
    const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map(c => c / 255)
      .map(c => c <= 0.04 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  const behind = e => {
    const color = getComputedStyle(e).backgroundColor;
    return color === "rgba(0, 0, 0, 0)" ? behind(e.parentElement) : color;
  };
  return [...document.querySelectorAll(".bd-article :is(div.highlight span, a)")]
    .filter(e => e.textContent.trim() && getComputedStyle(e).display !== "none")
    .filter(e => {
      const pair = [light(getComputedStyle(e).color), light(behind(e))];
      return Math.max(...pair) / Math.min(...pair) < 4.5;
    }).map(e => e.textContent);
})()"""


@needs_chromium
def test_a_self_check_answers_by_keyboard_and_is_remembered(site):
    name = "book/02-concepts/token.html"
    with served(site) as host, open_page() as page:
        page.visit(f"http://{host}/{name}")
        shown = """[...document.querySelectorAll(".check-feedback")]
          .filter(e => getComputedStyle(e).display != "none").map(e => e.textContent)"""
        said = "document.querySelector('.check-result').textContent"
        assert page.evaluate(shown) == []
        right = page.evaluate("""[...document.querySelectorAll(".selfcheck fieldset")]
          .map(q => [...q.querySelectorAll("input")]
            .findIndex(i => i.value == "right"))""")
        page.evaluate("document.querySelector('#check-1-1').focus()")
        page.press("Space")
        assert len(page.evaluate(shown)) == 1
        beginning = page.evaluate(shown)[0][:20]
        assert any(text.startswith(beginning) for text in announced(page))
        assert "2 to go" in page.evaluate(said)
        for number, place in enumerate(right, 1):
            page.evaluate(f"document.querySelector('#check-{number}-1').focus()")
            page.press("Space")
            for _ in range(place):
                page.press("ArrowDown")
        assert all("Right." in text for text in page.evaluate(shown))
        assert page.evaluate(said).endswith("3 of 3 right.")
        page.visit(f"http://{host}/book/index.html")
        ticks = """[...document.querySelectorAll(".page-done")]
          .map(e => new URL(e.closest("a").href).pathname.slice(1))"""
        assert page.evaluate(ticks) == [name]
        assert list(reported_problems(page, host)) == []


@needs_chromium
def test_on_paper_there_is_the_text_and_no_frame(site):
    with served(site) as host, open_page() as page:
        page.visit(f"http://{host}/book/02-concepts/token.html")
        page.evaluate("document.documentElement.dataset.theme = 'dark'")
        page.call("Emulation.setEmulatedMedia", media="print")
        seen = """Object.fromEntries([".bd-sidebar-primary", ".bd-header-article",
          ".prev-next-footer", ".page-head", "h1", ".bd-article pre", ".selfcheck"]
          .map(s => [s, document.querySelector(s)])
          .map(([s, e]) => [s, getComputedStyle(e).display != "none"]))"""
        assert [s for s, there in page.evaluate(seen).items() if there] == [
            "h1", ".bd-article pre", ".selfcheck",
        ]  # fmt: skip
        back = "getComputedStyle(document.body).backgroundColor"
        assert page.evaluate(back) == "rgb(255, 255, 255)"
        assert page.evaluate(PALE) == []


def test_each_page_says_what_a_link_to_it_shows(site):
    text = (site / "book/02-concepts/token.html").read_text("utf8")
    found = dict(re.findall(r'<meta property="(og:[\w:]+)" content="([^"]*)">', text))
    assert found["og:title"].endswith("Token")
    assert found["og:description"].startswith("Into which pieces should a text be cut")
    picture = site / "book/02-concepts" / found["og:image"]
    assert picture.resolve().is_file()
    assert "make run CHAPTER=book/02-concepts/token.ipynb" in text


@needs_chromium
def test_search_finds_a_page(site):
    with served(site) as host, open_page() as page:
        page.visit(f"http://{host}/search.html?q=token")
        page.listen(1.0)
        assert page.evaluate("document.querySelectorAll('ul.search li').length") > 0
        assert list(reported_problems(page, host)) == []


@needs_chromium
def test_the_site_can_be_opened_from_the_disk(site):
    with open_page() as page:
        page.visit((site / "book" / "index.html").as_uri())
        assert [*looks(page), *reported_problems(page, "")] == []
        assert page.evaluate("document.querySelectorAll('.mermaid svg').length") > 0


# --- and each of these can fail -------------------------------------------------------


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<script src="//cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="https://fonts.example/css">',
        '<link rel="preconnect" href="https://fonts.example">',
        '<img src="x.png" srcset="https://img.example/2x.png 2x">',
        '<iframe src="https://video.example/1"></iframe>',
        '<style>@import "https://fonts.example/a.css";</style>',
        '<p style="background: url(https://img.example/a.png)">',
        '<script type="module">import m from "https://cdn.example/m.mjs";</script>',
    ],
)
def test_planted_fetch(html, tmp_path):
    (tmp_path / "index.html").write_text(html)
    assert len(list(foreign_fetches(tmp_path))) == 1


def test_planted_fetch_in_a_style_sheet(tmp_path):
    (tmp_path / "a.css").write_text(
        "@font-face {src: url('https://f.example/a.woff2')}"
    )
    assert len(list(foreign_fetches(tmp_path))) == 1


@pytest.mark.parametrize(
    ("html", "count"),
    [
        ('<a href="gone.html">x</a>', 1),
        ('<img src="gone.png">', 1),
        ('<a href="#gone">x</a>', 1),
        ('<a href="index.html#gone">x</a>', 1),
        ('<a id="here" href="index.html#here">x</a>', 0),
        ('<a href="https://other.example/">for people</a>', 0),
        ('<a href="mailto:a@b.example">for people</a>', 0),
    ],
)
def test_planted_reference(html, count, tmp_path):
    (tmp_path / "index.html").write_text(html)
    assert len(list(missing_targets(tmp_path.resolve()))) == count
    assert list(foreign_fetches(tmp_path)) == []


@needs_chromium
@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<img src="http://other.example/a.png">', "asked another host"),
        ('<script>fetch("//other.example/a").catch(() => 0)</script>', "another host"),
        ('<img src="gone.png">', "404"),
        ('<script>console.error("no")</script>', "console"),
        ("<script>nothing()</script>", "exception"),
        ('<pre class="mermaid">graph TD</pre>', "chart not drawn"),
        (r'<div class="math">\(x\)</div>', "formula not set"),
        ('<img src="empty.png">', "picture not shown"),
    ],
)
def test_planted_problem_in_a_browser(html, problem, tmp_path):
    (tmp_path / "favicon.ico").touch()
    (tmp_path / "empty.png").touch()
    (tmp_path / "index.html").write_text(html)
    with served(tmp_path) as host, open_page() as page:
        page.visit(f"http://{host}/index.html")
        found = [*looks(page, patience=0), *reported_problems(page, host)]
    assert problem in "\n".join(found)


@needs_chromium
@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<img src="a.png">', "light: image-alt"),
        ('<p style="color: #aaa; background: #fff">pale</p>', "light: color-contrast"),
        ("<style>[data-theme=dark] p {color: #333; background: #222}</style><p>dim</p>",
         "dark: color-contrast"),
        ('<div class="highlight"><pre style="background: #fff"><span>word</span>'
         '<span style="color: #aaa">pale</span></pre></div>',
         "light: color-contrast"),
        ('<p style="color: #000">a <a href="#" style="color: #222; text-decoration: '
         'none">link</a> unseen</p>', "light: link-in-text-block"),
        ("<button></button>", "light: button-name"),
        ('<div class="highlight"><pre><span>word</span><a href="#"></a></pre></div>',
         "light: link-name"),
        ('<mjx-math aria-hidden="true"><a href="#">x</a></mjx-math>',
         "light: aria-hidden-focus"),
    ],
)  # fmt: skip
def test_planted_barrier(html, problem, tmp_path):
    head = '<!doctype html><html lang="en"><title>Page</title><main><h1>Page</h1>'
    (tmp_path / "index.html").write_text(f"{head}{html}</main></html>")
    with served(tmp_path) as host, open_page() as page:
        page.visit(f"http://{host}/index.html")
        assert problem in "\n".join(barriers(page))


@needs_chromium
def test_contrast_is_read_once_for_each_look(tmp_path):
    head = '<!doctype html><html lang="en"><title>Page</title><main><h1>Page</h1>'
    pale, paler = (f'<p style="color: #{c}">word</p>' for c in ("aaa", "bbb"))
    for name, html in (("one", pale * 9), ("two", pale), ("three", pale + paler)):
        (tmp_path / f"{name}.html").write_text(f"{head}{html}</main></html>")
    found, known = {}, set()
    with served(tmp_path) as host, open_page() as page:
        for name in ("one", "two", "three"):
            page.visit(f"http://{host}/{name}.html")
            found[name] = "\n".join(barriers(page, known))
    assert 0 < found["one"].count("light: color-contrast") < 9
    assert "color-contrast" not in found["two"]
    assert "#bbb" in found["three"]
    assert "#aaa" not in found["three"]


@needs_chromium
def test_what_a_visit_weighs_is_what_it_asks_for_compressed(tmp_path):
    (tmp_path / "a.css").write_text("p {color: red}" * 1000)
    (tmp_path / "unused.css").write_text("p {color: red}")
    (tmp_path / "index.html").write_text('<link rel="stylesheet" href="a.css"><p>x</p>')
    with served(tmp_path) as host, open_page() as page:
        page.visit(f"http://{host}/index.html")
        asked = [tmp_path / name for name in ("index.html", "a.css")]
        expected = sum(len(gzip.compress(f.read_bytes(), 6)) for f in asked)
        assert weight(page, tmp_path) == expected
