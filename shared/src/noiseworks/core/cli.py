"""The frame of every command line: lazily imported commands, one-line errors, exit status 2, `--json`, `--debug`.

A package's `cli.py` is a table:

    app = make_app("linear-ag", {"fit": Command("noiseworks.linear_ag.linear:fit_linear", "Fit LinearAG.")})

    def main() -> None:
        run(app)

The functions that the commands name are the package's public Python functions; nothing is imported before its
command runs, so `--help` stays fast. A command's result is printed as readable lines, or as JSON with `--json`.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from copy import copy
from dataclasses import dataclass, fields
from importlib.metadata import EntryPoint, entry_points, metadata
from traceback import walk_tb
from typing import Any

from cyclopts import App, Argument, ArgumentCollection, CycloptsError, Token
from noiseworks.core.errors import InputError, NoiseworksError
from noiseworks.core.families import by_family, family_of
from noiseworks.core.options import Options
from noiseworks.core.output import plain

METHOD_GROUP = "noiseworks.methods"
COMMAND_GROUP = "noiseworks.commands"
# An entry gives every method a verb: it names a module whose attribute `<slug>` is the function for that method.
VERB_GROUP = "noiseworks.verbs"
_TRY = "Try a method on your own model: before and after, beside each other."
EXIT_BAD_INPUT = 2
EXIT_STOPPED = 130


@dataclass(frozen=True)
class Command:
    """A command: the import path `module:function` of the public function it runs, and one line of help."""

    target: str
    help: str


class _Frame(App):
    """Shows the defaults that a command gives its groups of options, where cyclopts shows those of the classes."""

    __slots__ = ()

    def assemble_argument_collection(self, **settings: Any) -> ArgumentCollection:
        found = super().assemble_argument_collection(**settings)
        for argument in found:
            for name, child in _defaults_of(argument):
                value = getattr(argument.field_info.default, name)
                child.field_info = copy(child.field_info)  # the classes' own are shared by all commands
                child.field_info.default = value
        return found


def _fill_groups(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill a group of which some options were given from the command's default; cyclopts takes the class's."""
    for argument in arguments:
        if any(child.has_tokens for child in argument.children):
            for name, child in _defaults_of(argument):
                if not child.has_tokens:
                    value = getattr(argument.field_info.default, name)
                    child.append(Token(implicit_value=value, source="default of the command"))


def _defaults_of(argument: Argument) -> Iterator[tuple[str, Argument]]:
    """Yield the options whose default in a command is not that of their group's class."""
    group = argument.field_info.default
    if isinstance(group, Options):
        of_class = {field.name: field.default for field in fields(group)}
        for child in argument.children:
            name = child.keys[-1]
            if getattr(group, name) != of_class[name]:
                yield name, child


def make_app(slug: str, commands: Mapping[str, Command], *, distribution: str | None = None) -> App:
    """Return the command line of one package.

    Args:
        slug: The method's slug; the command is called `noiseworks-<slug>`.
        commands: Verb -> command. Targets are imported when their verb runs. Installed tools add verbs to those of
            a method (`claim`, with noiseworks-bench).
        distribution: The distribution whose summary and version are shown, by default `noiseworks-<slug>`.
    """
    about = metadata(distribution or f"noiseworks-{slug}")
    app = _Frame(
        name=f"noiseworks-{slug}",
        config=(_fill_groups,),
        help=about["Summary"],
        version=about["Version"],
        help_format="plaintext",  # in any markup, <name> would vanish
        result_action="return_value",
        suppress_keyboard_interrupt=False,  # so that `run` can say what became of the work
    )
    for verb, command in commands.items():
        app.command(command.target, name=verb, help=command.help, result_action="return_value")
    installed = entry_points()  # looked for once: it costs time
    if installed.select(group=METHOD_GROUP, name=slug):
        for entry in installed.select(group=VERB_GROUP):
            if entry.name not in commands:
                target, about_verb = (
                    f"{entry.value}:{slug}",
                    entry.dist.metadata["Summary"] if entry.dist else "",
                )
                app.command(target, name=entry.name, help=about_verb, result_action="return_value")
    return app


def run(app: App, arguments: Sequence[str] | None = None) -> None:
    """Run a command line and leave the process: 0 when it worked, 2 on bad input, 1 when a result says failure.

    Ctrl-C is one line on stderr and status 130; work that can go on raises `KeyboardInterrupt` with the sentence
    that says how. Bad input is one line on stderr. `--debug` anywhere shows the
    trace instead, `--json` anywhere prints the result as JSON. A result with a true attribute `failed` ends
    with status 1.

    Args:
        app: The app of `make_app`.
        arguments: Words after the command's name, by default those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug, as_json = "--debug" in words, "--json" in words
    words = [word for word in words if word not in ("--debug", "--json")]
    try:
        _check_verb(app, words)
        if words and not words[0].startswith("-") and words[0] in list(app):
            # cyclopts wraps a function that is named by its import path in a plain App.
            app[words[0]].__class__ = _Frame
        # With --json only the result is on stdout; bars and a library's messages go to stderr.
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            result = app(words, exit_on_error=False, print_error=False)
        show(result, as_json)
    except KeyboardInterrupt as stop:
        print(one_line(stop) if stop.args else "stopped", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    except (NoiseworksError, CycloptsError, OSError, MemoryError, RuntimeError) as error:
        refusal = _refusal(error)
        if debug or refusal is None:
            raise
        print(f"{app.name[0]}: {refusal}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    sys.exit(1 if getattr(result, "failed", False) else 0)


def _refusal(error: Exception) -> str | None:
    """Return what is said of an error in one line; None for a defect, whose trace is shown."""
    if isinstance(error, RecursionError):  # of a file's reader, which is nowhere asked how deep a file may be
        reader = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)][-1]
        return "a file is nested too deeply to be read" if reader.split(".")[0] in ("json", "yaml") else None
    if isinstance(error, MemoryError | RuntimeError):
        # PyTorch raises a RuntimeError: on the CPU of no class of its own.
        scarce = any(words in str(error) for words in ("out of memory", "can't allocate memory"))
        few = f"not enough memory, ask for less at a time: {one_line(error)[:200]}"
        return few if scarce or isinstance(error, MemoryError) else None
    return one_line(error)


def _check_verb(app: App, words: list[str]) -> None:
    # cyclopts would import every command to suggest one, which is slow and fails where an extra is missing.
    if not words or app.default_command is not None or words[0] in list(app):
        return
    what = "option" if words[0].startswith("-") else "command"
    verbs = ", ".join(name for name in app if not name.startswith("-"))
    raise InputError(f"unknown {what} {words[0]!r}; commands: {verbs}")


def one_line(error: BaseException) -> str:
    """Return an error's message folded to one line."""
    return " ".join(str(error).split()) or type(error).__name__


def show(result: Any, as_json: bool = False) -> None:
    """Print what a command returned: JSON, or a `__rich__` view, or `name: value` lines; None prints nothing.

    Raises:
        NonFiniteError: When a number of the result is NaN or infinite.
    """
    if result is None:
        return
    found = plain(result)
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
    elif hasattr(result, "__rich__"):
        from rich.console import Console

        Console().print(result)
    elif isinstance(result, Listing):
        print(result)
    else:
        lines = (
            [f"{name}: {value}" for name, value in found.items()] if isinstance(found, dict) else [str(found)]
        )
        print("\n".join(lines))


def installed_methods() -> dict[str, EntryPoint]:
    """Return the installed methods by slug, sorted."""
    return {
        entry.name: entry for entry in sorted(entry_points(group=METHOD_GROUP), key=lambda entry: entry.name)
    }


@dataclass(frozen=True)
class Listing:
    """The installed methods: title of the family -> slug -> one-line summary of the distribution."""

    families: Mapping[str, Mapping[str, str]]

    def to_dict(self) -> dict[str, dict[str, str]]:
        """Return slug -> family and summary."""
        return {
            slug: {"family": title, "summary": summary}
            for title, methods in self.families.items()
            for slug, summary in methods.items()
        }

    def __str__(self) -> str:
        parts = [
            "\n".join([title, *(f"  {slug}: {summary}" for slug, summary in methods.items())])
            for title, methods in self.families.items()
        ]
        return "\n\n".join(parts) or "no method is installed"


def list_methods() -> Listing:
    """List the installed methods by family.

    Returns:
        For each family its methods, with the summaries of their distributions.
    """
    found = installed_methods()
    grouped = by_family((slug, family_of(entry.dist)) for slug, entry in found.items())

    def summary(entry: EntryPoint) -> str:
        return entry.dist.metadata["Summary"] if entry.dist else ""

    return Listing(
        {title: {slug: summary(found[slug]) for slug in slugs} for title, slugs in grouped.items()}
    )


def dispatched() -> dict[str, EntryPoint]:
    """Return what `noiseworks <word>` hands over to: the kernel tools, installed commands and methods."""
    kernels = EntryPoint("kernels", "noiseworks.core.kernels.cli:app", COMMAND_GROUP)
    commands = {entry.name: entry for entry in entry_points(group=COMMAND_GROUP)}
    return {"kernels": kernels, **commands, **installed_methods()}


def try_method(method: str) -> None:
    """Try a method on your own model: what you do now and the method beside each other, in one run.

    It is the method's command `compare`, with the same options: `noiseworks try linear-ag --help` shows them.

    Args:
        method: The method's name, as `noiseworks list` shows it.

    Raises:
        InputError: When it is not installed, or has nothing to compare before it has been trained.
    """
    found = installed_methods()
    if method not in found:
        raise InputError(f"the method {method!r} is not installed; installed: {', '.join(found)}")
    raise InputError(
        f"{method} has no command compare, as it works on a model that it has trained or made: see "
        f"noiseworks {method} --help"
    )


def _tried(words: Sequence[str]) -> App | None:
    """Return the app whose `compare` the words after `noiseworks try` are for, if there is one."""
    entry = installed_methods().get(words[0]) if words else None
    app = None if entry is None else entry.load()
    return app if app is not None and "compare" in list(app) else None


def root_app() -> App:
    """Return the app of `noiseworks`: lists what is installed; `main` dispatches `noiseworks <slug> ...`."""
    about = metadata("noiseworks-core")
    app = App(
        name="noiseworks",
        help="Diffusion papers as methods that plug into the models you have, and as claims that anyone can run.",
        version=about["Version"],
        help_format="plaintext",
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    app.command(list_methods, name="list", help="List the installed methods.", result_action="return_value")
    app.command(try_method, name="try", help=_TRY, result_action="return_value")
    for name, entry in dispatched().items():
        summary = (
            entry.dist.metadata["Summary"] if entry.dist else "Show and measure the GPU kernels of the core."
        )
        app.command(entry.value, name=name, help=summary)
    return app


def main() -> None:
    """Run `noiseworks`."""
    words = sys.argv[1:]
    targets = dispatched()
    if words[:1] == ["try"]:
        app = _tried(words[1:])
        if app is not None:
            run(app, ["compare", *words[2:]])
        words = words[:2]  # so that the refusal is about the method and not about its options
    if words and words[0] in targets:
        run(targets[words[0]].load(), words[1:])
    run(root_app(), words)
