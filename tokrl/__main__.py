"""The small models of chapter 6 from the command line."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch loads slowly, and --help does without
    from tokrl.models import LanguageModel
    from tokrl.tokenizers import Tokenizer


def load(name: str) -> "tuple[LanguageModel, Tokenizer]":
    """A shipped model and its tokenizer; ValueError or OSError if they are broken."""
    from pathlib import Path

    import torch

    from tokrl import models, pretrained
    from tokrl.tokenizers import Tokenizer

    torch.set_num_threads(1)
    folder = Path(pretrained.path(name))
    model = models.load(folder / "model.safetensors")
    return model, Tokenizer.load(folder / "tokrl.json")


def read(text: str) -> str:
    """What the user gave: the text itself, or all of standard input for "-"."""
    if text != "-":
        return text
    if sys.stdin is None:
        raise ValueError("standard input is closed: give the text itself")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"standard input is not UTF-8 text ({error.reason} at byte "
            f"{error.start}): save it as UTF-8"
        ) from error


def generate(options: argparse.Namespace) -> list[str]:
    """Stories that begin with the prompt; with --check, what the world says of each."""
    import torch

    from tokrl.apps.generation import WRITER, continue_text
    from tokrl.tokenizers import join_words
    from tokrl.world import END, World

    choice = {
        name: value
        for name in ("temperature", "top_k", "top_p")
        if (value := getattr(options, name)) is not None
    }
    generator = torch.Generator()
    if options.seed is None:
        generator.seed()
    else:
        generator.manual_seed(options.seed)
    prompt = read(options.prompt).strip()
    model, tokenizer = load("writer")
    texts = continue_text(
        model, tokenizer, prompt, options.count, generator, options.beam, **choice
    )
    if not options.check:
        return texts
    world, lines = World(WRITER), []
    for text in texts:
        words = world.split(text)
        at = world.first_error([*words, END])
        right = join_words(words[:at])
        verdict = "possible" if at is None else f"impossible after {right!r}"
        lines += [text, f"  ({verdict})"]
    return lines


def translate(options: argparse.Namespace) -> list[str]:
    """The translation of a text."""
    from tokrl.apps.translation import translate_text

    text = read(options.text)
    return [translate_text(*load("translator"), text, options.to)]


def answer(options: argparse.Namespace) -> list[str]:
    """The answer to a question about a story, with its chain of steps."""
    from tokrl.apps import qa

    story = read(options.story)
    reply = qa.answer(*load("reader"), story, options.question, not options.at_once)
    chain = [" > ".join(reply.chain)] if reply.chain else []
    return [*chain, f"{reply.answer} (confidence {reply.confidence:.2f})"]


def whole(least: int, most: int) -> Callable[[str], int]:
    """A parser of whole numbers that are neither too small nor too large."""

    def parse(text: str) -> int:
        number = int(text)
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text}: give {least} to {most}")
        return number

    parse.__name__ = "whole number"
    return parse


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    keep: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    top = argparse.ArgumentParser("python -m tokrl", description=__doc__, **keep)
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(run: Callable, text: str, example: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            run.__name__, help=text, description=text, **keep,
            epilog=f"example:\n  python -m tokrl {run.__name__} {example}",
        )  # fmt: skip
        made.set_defaults(run=run)
        return made

    writer = command(
        generate, "go on with a story",
        '"Today, Anna is in the park." --count 2 --seed 1 --check',
    )  # fmt: skip
    writer.add_argument(
        "prompt",
        nargs="?",
        default="",
        help="how it begins; - reads standard input; none: from nothing",
    )
    writer.add_argument("--count", type=whole(1, 10_000), default=1, help="stories, 1")
    writer.add_argument(
        "--seed", type=whole(0, 2**63 - 1), help="for the same stories each time"
    )
    writer.add_argument("--temperature", type=float, help="above 0; 1")
    writer.add_argument(
        "--top-k", type=whole(0, 10_000), help="of the k likeliest tokens; all"
    )
    writer.add_argument("--top-p", type=float, help="of the likeliest of this mass; 1")
    writer.add_argument(
        "--beam",
        type=whole(1, 1000),
        default=0,
        help="search for a likely story so wide, in place of drawing",
    )
    writer.add_argument("--check", action="store_true",
                        help="say whether each is possible in the world")  # fmt: skip
    translator = command(
        translate, "translate sentences of the world",
        '"Anna takes the red ball." --to zh',
    )  # fmt: skip
    translator.add_argument("text", help="what to translate; - reads standard input")
    translator.add_argument("--to", required=True, choices=("en", "zh"),
                            help="the language to translate to")  # fmt: skip
    reader = command(
        answer, "answer a question about a story",
        '--story "Today, Anna is in the park. Anna has a red ball." '
        '--question "Where is the red ball?"',
    )  # fmt: skip
    reader.add_argument(
        "--story",
        required=True,
        help="its text, about two people and one thing, with ___ for a word that "
        "cannot be read; - reads standard input",
    )
    reader.add_argument("--question", required=True,
                        help='"Where is ...?" or "Who has ...?"')  # fmt: skip
    reader.add_argument(
        "--at-once", action="store_true", help="without steps before it"
    )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; what the user got wrong is one line on stderr and exit code 2."""
    # Chinese comes out whatever the terminal says of its encoding.
    for stream in (sys.stdout, sys.stderr, sys.stdin):
        if hasattr(stream, "reconfigure"):
            # Some editors begin a file with a mark, which is not text.
            mark = "-sig" if stream is sys.stdin else ""
            stream.reconfigure(encoding=f"utf-8{mark}")
    if arguments is None:  # the bytes are UTF-8, even if the locale is C
        arguments = [os.fsencode(a).decode("utf-8", "replace") for a in sys.argv[1:]]
    options = parser().parse_args(arguments)
    try:
        for line in options.run(options):
            print(line, flush=True)
    except BrokenPipeError:  # whoever read has had enough
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return 130  # as shells have it
    except (ValueError, OSError) as error:
        print(f"tokrl: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
