"""Asks every installed method's command line for help and gives it values out of range, in one cold process.

Prints one JSON object: slug -> what each verb's help says, how each value out of range was refused, and which heavy
modules were loaded on the way. Run by `test_commands.py`; slugs are its arguments.
"""

import contextlib
import inspect
import io
import json
import os
import re
import sys
import typing
from collections import defaultdict
from dataclasses import MISSING, fields
from importlib.metadata import entry_points
from pathlib import Path

from docstring_parser import parse
from noiseworks.core.cli import run
from noiseworks.core.errors import InputError
from noiseworks.core.options import Bound, Options, rules_of
from noiseworks.dev.contracts import app_of, contract_of

HEAVY = (
    "torch",
    "triton",
    "diffusers",
    "transformers",
    "lightning",
    "peft",
    "matplotlib",
    "sklearn",
    "lerobot",
)
STEP = 1e-6
NO_NUMBERS = (float("nan"), float("inf"), float("-inf"), "much", [1], True)
NO_WHOLES = (2.5, 2**80)
PACKAGES = Path(__file__).parents[1] / "packages"


def call(app, words):
    out, error = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            run(app, words)
    except SystemExit as stop:
        return {
            "words": words,
            "status": stop.code or 0,
            "stdout": out.getvalue(),
            "stderr": error.getvalue(),
        }


def option(name):
    return "--" + name.replace("_", "-").strip("-")


def groups(function):
    """Yield the option groups of a command with their hints resolved."""
    yield from named_groups(function).values()


def required(function, lines):
    """Return words that fill the options without a default: as in a line that works, a folder for its files, or 1."""
    names = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind is parameter.KEYWORD_ONLY
        and name not in group_names(function)
    ]
    for group in groups(function):
        names += [f.name for f in fields(group) if f.default is MISSING and f.default_factory is MISSING]
    words = []
    for name in names:
        given = [match[1] for line in lines if (match := re.search(rf"{option(name)} (\S+)", line))]
        word = given[0] if given else "1"
        words += [f"{option(name)}={'.' if '{' in word else word}"]
    return words


def described(function):
    """Return the texts that a verb's help has to show, without white space."""
    texts = [p.description for p in parse(function.__doc__).params if p.arg_name not in group_names(function)]
    for group in groups(function):
        nested = group_names(group)
        texts += [p.description for p in parse(group.__doc__).params if p.arg_name not in nested]
    return ["".join(text.split()) for text in texts]


def group_names(function):
    """Return the names of the parameters, or fields, that are groups themselves."""
    return set(named_groups(function))


def named_groups(function):
    """Return the groups by the names of the parameters, or fields, that take them, also where None is their default."""
    named = {}
    for name, hint in typing.get_type_hints(function).items():
        for kind in typing.get_args(hint) or (hint,):
            if isinstance(kind, type) and issubclass(kind, Options):
                named[name] = kind
    return named


def out_of_range(function, seen):
    """Yield options of a command with a word outside a bound.

    One a verb, and one a group that no verb before it had, for a command line costs more than the check, which is the
    group's own: `taken_without_a_word` asks it for each bound of a number. Of what is read from a text, like a list of
    wholes, each bound once.
    """
    words = [(group, name, word) for group in groups(function) for name, word in out_of_bounds(group)]
    for place, (group, name, word) in enumerate(words):
        number = {int, float} & set(rules_of(group)[name].types)
        one = group if number else (group, name, word)
        if place == 0 or one not in seen:
            yield name, word
        seen.add(one)


def out_of_bounds(group):
    """Yield the option and a word outside each bound of an option group."""
    for name, hint in typing.get_type_hints(group, include_extras=True).items():
        whole = any(kind in str(hint) for kind in ("int", "Wholes"))
        for bound in getattr(hint, "__metadata__", ()):
            if isinstance(bound, Bound):
                low = bound.low is not None
                edge = bound.low if low else bound.high
                open_edge = bound.low_open if low else bound.high_open
                move = (0 if open_edge else 1 if whole else STEP) * (-1 if low else 1)
                value = int(edge) + move if whole else float(edge) + move
                yield name, f"{value}"


def taken_without_a_word(function, verb):
    """Yield the numeric fields of a command's option groups that take what is no number in their range's type.

    Neither may a bound be passed. The check is asked directly: every way to make a group goes through it.
    """
    for group in groups(function):
        outside = defaultdict(list)
        for name, word in out_of_bounds(group):
            outside[name].append(float(word))
        for name, rule in rules_of(group).items():
            if int in rule.types or float in rule.types:
                for value in (*NO_NUMBERS, *([] if float in rule.types else NO_WHOLES), *outside[name]):
                    try:
                        rule.check(name, value)
                    except InputError as error:
                        if name in str(error):
                            continue
                    if not (isinstance(value, str) and str in rule.types):
                        yield f"{verb} {option(name)}={value}"


def unread(function, verb):
    """Yield the whole numbers of a command that stand in no group and are not read as `Whole` or `Seed`."""
    for name, hint in typing.get_type_hints(function, include_extras=True).items():
        if name != "return" and hint in (int, int | None):
            yield f"{verb} {option(name)}"


def main():
    os.environ["COLUMNS"] = "400"  # so that a long option's name does not wrap between the words of its help
    found, seen = {}, set()
    for slug in sys.argv[1:]:
        app, contract = app_of(slug), contract_of(PACKAGES / slug)
        record = {"help": {}, "refused": [], "nonsense": []}
        for verb in [name for name in app if not name.startswith("-")]:
            text = call(app, [verb, "--help"])["stdout"]
            function = app[verb].default_command
            shown = "".join(text.replace("│", " ").split())
            lines = [line for line in contract.good if line.split()[0] == verb]
            lost = [wanted for wanted in described(function) if wanted not in shown]
            record["help"][verb] = {"text": text, "lost": lost}
            record["nonsense"] += [*taken_without_a_word(function, verb), *unread(function, verb)]
            for name, word in out_of_range(function, seen):
                filled = [w for w in required(function, lines) if not w.startswith(f"{option(name)}=")]
                record["refused"].append(
                    {"option": name, **call(app, [verb, *filled, f"{option(name)}={word}"])}
                )
        (claim,) = entry_points(group="noiseworks.claims", name=slug)
        claim.load()  # the runner does so before it runs anything
        record["heavy"] = [name for name in HEAVY if name in sys.modules]
        found[slug] = record
    print(json.dumps(found))


if __name__ == "__main__":
    main()
