"""The shape of the repository: imports, one truth about versions, clean files."""

import ast
import importlib.metadata
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import tokrl

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")

# --- imports point downward -----------------------------------------------------------

# A room may import the rooms before it; a bar divides the levels for the reader.
ROOMS = """
    batches masking processes runs
    | tokenizers world models rewards advantages losses exact metrics
    | sampling scoring
    | rollout
    | training
    | apps show pretrained __main__
""".replace("|", "").split()


def imported_modules(module, source, modules):
    """Names of the modules of `modules` that the source of `module` imports."""
    package = module if f"{module}.__init__" in modules else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                above = parts[: len(parts) - node.level + 1]
                base = ".".join(above + ([base] if base else []))
            names = [f"{base}.{alias.name}" for alias in node.names] + [base]
        else:
            continue
        # `from tokrl.world import World` names a module and something inside it.
        yield from (name for name in names if name in modules)


def import_problems(sources):
    """`sources` maps dotted module names to their text; packages as `name.__init__`."""
    modules = set(sources) | {n.removesuffix(".__init__") for n in sources}
    inside = {}
    for name, source in sources.items():
        module = name.removesuffix(".__init__")
        room = module.split(".")[1] if "." in module else None
        if room is not None and room not in ROOMS:
            yield f"{module}: '{room}' is not in the list of rooms"
            continue
        for target in imported_modules(module, source, modules):
            if target in ("tokrl", module):
                continue
            other = target.split(".")[1]
            if room is None:
                yield f"tokrl/__init__.py imports {target}: it imports no room"
            elif other == room:
                inside.setdefault(module, set()).add(target)
            elif other not in ROOMS[: ROOMS.index(room)]:
                yield f"{module} imports {target}, which is not below it"
    yield from circles(inside)


def circles(graph):
    finished = set()

    def visit(node, path):
        if node in path:
            yield "circle: " + " -> ".join([*path[path.index(node) :], node])
        elif node not in finished:
            for target in sorted(graph.get(node, ())):
                yield from visit(target, [*path, node])
            finished.add(node)

    for node in sorted(graph):
        yield from visit(node, [])


def test_imports_point_downward():
    sources = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text("utf8")
        for path in sorted((ROOT / "tokrl").rglob("*.py"))
    }
    assert list(import_problems(sources)) == []


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        ("tokrl.masking", "from tokrl.rewards import f", "not below"),
        ("tokrl.masking", "def f():\n    import tokrl.rewards", "not below"),
        ("tokrl.tokenizers.text", "from ..world.story import S", "not below"),
        ("tokrl.tokenizers.text", "from tokrl import world", "not below"),
        ("tokrl.world.story", "from tokrl.world import World", "circle"),
        ("tokrl.world.story", "from . import World", "circle"),
        ("tokrl.helpers", "", "not in the list"),
        ("tokrl.__init__", "from tokrl.world import World", "imports no room"),
        ("tokrl.rewards", "from tokrl.world import World", None),
        ("tokrl.rewards", "from . import world, __version__", None),
        ("tokrl.world.story", "import tokrl.masking", None),
    ],
)
def test_planted_import(module, source, problem):
    sources = {
        "tokrl.__init__": "",
        "tokrl.masking": "",
        "tokrl.rewards": "",
        "tokrl.tokenizers.__init__": "",
        "tokrl.world.__init__": "from .story import S",
        "tokrl.world.story": "",
    }
    found = list(import_problems({**sources, module: source}))
    assert found == [] if problem is None else problem in "\n".join(found)


# --- one truth about what is installed ------------------------------------------------


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]


def direct_dependencies():
    extras = project()["optional-dependencies"].values()
    lines = sum(extras, project()["dependencies"])
    return [Requirement(line) for line in lines]


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(python):
    """The exact version of every constrained package under one Python version."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text("utf8").splitlines():
        if not line or line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            name = canonical(pin.name)
            assert re.fullmatch(r"==[^*,]+", str(pin.specifier)), f"not exact: {line}"
            assert name not in found, f"{name} is pinned twice for Python {python}"
            found[name] = str(pin.specifier).removeprefix("==")
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_direct_dependencies_are_pinned_in_one_place(python):
    for requirement in direct_dependencies():
        assert not requirement.specifier, f"{requirement}: versions: constraints.txt"
        assert canonical(requirement.name) in pins(python)


def test_what_is_installed_is_what_is_pinned():
    running = "{}.{}".format(*sys.version_info)
    for requirement in direct_dependencies():
        version = importlib.metadata.version(requirement.name)
        # A local part names a build of the same version: torch's CPU build, say.
        pinned = pins(running)[canonical(requirement.name)]
        assert version.partition("+")[0] == pinned, requirement.name


def test_environment_yml_is_a_shell_over_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf8"))
    python, *rest = environment["dependencies"]
    assert rest == ["pip", {"pip": ["-c constraints.txt", "-e .[book,test]"]}]
    name, _, versions = python.partition(" ")
    assert name == "python"
    assert SpecifierSet(versions) == SpecifierSet(project()["requires-python"])
    assert all(python in SpecifierSet(versions) for python in PYTHONS)


def test_the_version_stands_in_pyproject_only():
    assert tokrl.__version__ == project()["version"]


def test_front_end_files_are_locked_and_name_no_host():
    wanted = json.loads((ROOT / "package.json").read_text("utf8"))["dependencies"]
    lock = json.loads((ROOT / "package-lock.json").read_text("utf8"))["packages"]
    assert lock[""]["dependencies"] == wanted
    for name, version in wanted.items():
        assert lock[f"node_modules/{name}"]["version"] == version
    assert not any("resolved" in package for package in lock.values())


# --- clean files ----------------------------------------------------------------------

TOP_LEVEL = {
    *(".ci", ".gitignore", ".npmrc", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"),
    *("Makefile", "README.md", "_config.yml", "_ext", "_static", "_templates"),
    *("_toc.yml", "book", "conftest.py", "constraints.txt", "environment.yml"),
    *("package-lock.json", "package.json", "pyproject.toml", "tests", "tokrl"),
}
# Spelt in parts so that this file passes its own test.
MACHINE_PATH = re.compile(
    r"(?<![\w.~-])(?:/(?:work|root|home|tmp|Users)/\w|[A-Z]:\\\w)"
)
PACKAGE_HOST = re.compile(
    "|".join(
        rf"\b{name}\.{domain}\b"
        for name, domain in [
            ("pypi", "org"),
            ("pythonhosted", "org"),
            ("pytorch", "org/whl"),
            ("npmjs", "(?:org|com)"),
            ("unpkg", "com"),
            ("jsdelivr", "net"),
            ("cloudflare", "com"),
            ("anaconda", "(?:org|com)"),
        ]
    )
)


def repository_files():
    """Files that are tracked, or would be by `git add`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: the list of files is git's")
    names = answer.stdout.decode("utf8").split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def text_problems(data):
    if b"\0" in data:
        return []
    text = data.decode("utf8")
    found = [f"machine path {m[0]}" for m in MACHINE_PATH.finditer(text)]
    found += [f"package host {m[0]}" for m in PACKAGE_HOST.finditer(text)]
    return found + (["CRLF line endings"] if "\r\n" in text else [])


def test_nothing_unexpected_at_the_top_level():
    found = {path.relative_to(ROOT).parts[0] for path in repository_files()}
    assert found - TOP_LEVEL == set()


def test_no_file_names_a_machine_or_a_package_host():
    problems = {
        str(path.relative_to(ROOT)): found
        for path in repository_files()
        if (found := text_problems(path.read_bytes()))
    }
    assert problems == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("see /" + "home/anna/tokrl", "machine path"),
        ('{"file": "/' + 'tmp/x"}', "machine path"),
        ("https://files.pythonhosted" + ".org/x", "package host"),
        ("https://cdn.jsdelivr" + ".net/npm/x", "package host"),
        ("a\r\nb", "CRLF"),
        ("_build/html, tests/x, ~/tmp/x, https://doi.org/10.1/x", None),
    ],
)
def test_planted_text(text, problem):
    found = text_problems(text.encode())
    assert found == [] if problem is None else problem in found[0]


def test_what_begins_first_is_there():
    """A page that was renamed would only begin too late, and nothing else tell."""
    paths = runpy.run_path(str(ROOT / "conftest.py"))["LONG"]
    assert [path for path in paths if not (ROOT / path).exists()] == []
