"""The command line: what it prints, and what it says to whoever typed it wrong."""

import os
import re
import subprocess
import sys

import pytest

from tokrl import pretrained
from tokrl.__main__ import main, parser
from tokrl.apps.generation import WRITER
from tokrl.world import World

STORY = (
    "Today, Anna is in the kitchen. Tom is in the park. Anna has a red ball. "
    "Anna goes to the park. Anna gives the red ball to Tom."
)


def run(capsys, *arguments):
    """(exit code, lines on stdout, text on stderr)"""
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def test_stories_begin_as_asked_and_a_seed_decides_them(capsys):
    prompt = "Today, Anna is in the park."
    asked = ("generate", prompt, "--count", "3", "--seed", "5")
    code, stories, err = run(capsys, *asked)
    assert (code, len(stories), err) == (0, 3, "")
    assert all(story.startswith(prompt) for story in stories)
    assert len(set(stories)) == 3
    assert run(capsys, *asked)[1] == stories
    assert run(capsys, *asked[:-1], "6")[1] != stories
    beam = run(capsys, "generate", prompt, "--beam", "3")
    assert beam == run(capsys, "generate", prompt, "--beam", "3", "--seed", "1")


def test_the_verdict_on_a_story_is_the_worlds(capsys):
    _, lines, _ = run(capsys, "generate", "--count", "30", "--seed", "0", "--check")
    world, found = World(WRITER), set()
    for story, verdict in zip(lines[::2], lines[1::2], strict=True):
        wrong = world.first_error([*world.split(story), "<eos>"])
        assert verdict.startswith("  (possible)" if wrong is None else "  (impossible")
        found.add(wrong is None)
    assert found == {True, False}


@pytest.mark.parametrize(
    ("text", "lang", "expected"),
    [
        ("Anna takes the red ball.", "zh", "安娜拿起红球。"),
        ("安娜拿起红球。", "en", "Anna takes the red ball."),
    ],
)
def test_sentences_are_translated_both_ways(capsys, text, lang, expected):
    assert run(capsys, "translate", text, "--to", lang) == (0, [expected], "")


def test_a_question_is_answered_with_its_steps(capsys):
    asked = ("answer", "--story", STORY, "--question", "Where is the red ball?")
    code, (chain, reply), _ = run(capsys, *asked)
    assert (code, chain) == (0, "red ball > Tom > park")
    assert re.fullmatch(r"park \(confidence [01]\.\d\d\)", reply)
    _, (only,), _ = run(capsys, *asked, "--at-once")
    assert only.startswith("park")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["generate", "a dragon"], "'dragon'"),
        (["generate", "Anna " * 200], "shorten"),
        (["generate", "--temperature", "0"], "temperature=0.0"),
        (["generate", "--top-p", "2"], "top_p=2.0"),
        (["generate", "--beam", "2", "--count", "2"], "count=2"),
        (["translate", "  ", "--to", "zh"], "at least one sentence"),
        (["translate", "Anna is hungry.", "--to", "zh"], "hungry"),
        (["translate", "安娜拿起红球。", "--to", "zh"], "target='zh'"),
        (["answer", "--story", " ", "--question", "Where is Anna?"], "empty"),
        (["answer", "--story", STORY, "--question", "Is Anna happy?"], "Where is"),
        (
            ["answer", "--story", STORY, "--question", "Who is Anna?"],
            "'Where is Anna?'",
        ),
    ],
)
def test_what_was_typed_wrong_is_said_in_one_line(capsys, arguments, named):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, [])
    assert named in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--count", "0"],
        ["generate", "--seed", "x"],
        ["generate", "--seed", str(2**63)],
        ["generate", "--count", "1000000000"],
        ["generate", "--beam", "1000000000"],
        ["translate", "Anna.", "--to", "fr"],
        ["answer", "--story", STORY],
        ["sing"],
        [],
    ],
)
def test_a_wrong_option_ends_with_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: python -m tokrl" in capsys.readouterr().err


def test_a_missing_or_broken_model_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    code, _, err = run(capsys, "generate")
    assert code == 2
    assert "make writer" in err
    (tmp_path / "town-writer").mkdir()
    (tmp_path / "town-writer" / "model.safetensors").write_bytes(b"cut off")
    code, _, err = run(capsys, "generate")
    assert code == 2
    assert "model.safetensors" in err


def test_help_has_an_example_of_each_command_that_can_be_parsed():
    import shlex

    commands = parser()._subparsers._group_actions[0].choices
    assert list(commands) == ["generate", "translate", "answer"]
    for made in commands.values():
        line = made.epilog.splitlines()[1]
        assert parser().parse_args(shlex.split(line)[3:]).run


def shell(arguments, **options):
    environment = {**os.environ, "LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"}
    return subprocess.run(
        [sys.executable, "-m", "tokrl", *arguments], env=environment,
        capture_output=True, timeout=120, **options,
    )  # fmt: skip


def test_chinese_comes_in_and_out_whatever_the_terminal_says():
    done = shell(["translate", "-", "--to", "en"], input="安娜拿起红球。".encode())
    assert done.stdout.decode() == "Anna takes the red ball.\n"
    done = shell(["translate", "安娜拿起红球。", "--to", "en"])
    assert done.stdout.decode() == "Anna takes the red ball.\n"
    done = shell(["translate", "Anna takes the red ball.", "--to", "zh"])
    assert done.stdout.decode() == "安娜拿起红球。\n"


def test_input_in_another_encoding_is_named():
    done = shell(["translate", "-", "--to", "en"], input="安娜".encode("gbk"))
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"not UTF-8" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_whoever_stops_reading_is_not_shown_a_traceback():
    code = (
        "import tokrl.__main__ as m\n"
        "def generate(options): return ['x' * 100] * 20_000\n"
        "m.generate = generate\n"
        "raise SystemExit(m.main(['generate']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as writer:
        assert writer.stdout.read(10) == b"x" * 10
        writer.stdout.close()
        assert writer.stderr.read() == b""
    assert writer.returncode == 0


def test_help_does_not_wait_for_torch():
    code = "import sys, tokrl.__main__ as m; m.parser(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_ctrl_c_and_a_closed_input_show_no_traceback(capsys, monkeypatch):
    def pressed(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("tokrl.__main__.load", pressed)
    assert run(capsys, "generate") == (130, [], "")
    monkeypatch.undo()
    monkeypatch.setattr(sys, "stdin", None)
    code, _, err = run(capsys, "translate", "-", "--to", "zh")
    assert code == 2
    assert err == "tokrl: standard input is closed: give the text itself\n"
