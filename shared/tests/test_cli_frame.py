"""The command-line frame: one-line errors, exit statuses, JSON, lazy imports and `--help` without torch."""

import json
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from noiseworks.core.cli import Command, list_methods, main, make_app, one_line, root_app, run, show
from noiseworks.core.errors import InputError
from noiseworks.core.families import by_family
from noiseworks.core.options import Options, Spread, Wholes


@dataclass(frozen=True)
class Outcome:
    """A result with everything that must become JSON."""

    ratio: float
    path: Path
    parts: tuple[int, ...]
    failed: bool = False


@dataclass(frozen=True)
class Size:
    """A size.

    Attributes:
        width: In metres.
        height: In feet.
    """

    width: float
    height: float = 1.0


@dataclass(frozen=True)
class Draw(Options):
    """How to draw.

    Attributes:
        steps: Of the sampler.
        scale: Of guidance.
        solver: Which one.
        sizes: Of pictures.
        sharp: Whether edges are.
        weights: Of parts.
        limit: Of parts, if any.
        kept: Never another.
    """

    steps: int = 50
    scale: float | None = None
    solver: Literal["euler", "heun"] = "euler"
    sizes: Wholes = (64,)
    sharp: bool = False
    weights: tuple[float, ...] = (1.0,)
    limit: int | None = 3
    kept: int = 7


def draw(
    *,
    draw: Spread[Draw] = Draw(15, 2.5, "heun", (32, 16), True, (3.0, 4.0), None),
    plain: Spread[Size] = Size(2.0),
) -> dict:
    """Draw.

    Args:
        draw: How.
        plain: Of no group.
    """
    return vars(draw) | vars(plain)


def area(*, size: Spread[Size]) -> float:
    """Return an area.

    Args:
        size: The size.
    """
    return size.width * size.height


def double(value: float, *, fail: bool = False) -> Outcome:
    """Double a number.

    Args:
        value: A number of at least 0.
        fail: Whether the result says failure.
    """
    if value < 0:
        raise InputError(f"value must be at least 0,\n got {value}")
    return Outcome(2 * value, Path("out"), (1, 2), fail)


def broken() -> None:
    """Fail in a way that is nobody's input."""
    raise ZeroDivisionError("a defect")


def greedy() -> None:
    """Ask for more memory than there is, as PyTorch says it."""
    raise RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0.\n can't allocate memory: you tried 34 bytes"
    )


def deep() -> None:
    """Read a file that is nested too deeply."""
    json.loads("[" * 200_000)


def endless() -> None:
    """Call itself for ever: a defect."""
    endless()


def confused() -> None:
    """Fail in PyTorch in a way that is nobody's input."""
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def interrupted() -> None:
    """Be stopped by Ctrl-C."""
    raise KeyboardInterrupt


@pytest.fixture
def app(monkeypatch):
    module = types.ModuleType("frame_commands")
    verbs = {
        "double": double,
        "broken": broken,
        "interrupted": interrupted,
        "greedy": greedy,
        "confused": confused,
        "deep": deep,
        "endless": endless,
    }
    vars(module).update(verbs)
    monkeypatch.setitem(sys.modules, "frame_commands", module)
    commands = {name: Command(f"frame_commands:{name}", f"Run {name}.") for name in verbs}
    commands["absent"] = Command("no_such_module:function", "Import nothing before it runs.")
    return make_app("frame", commands, distribution="noiseworks-core")


def status(app, *words):
    with pytest.raises(SystemExit) as end:
        run(app, words)
    return end.value.code


def test_a_command_prints_its_result_as_lines(app, capsys):
    assert status(app, "double", "1.5") == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["ratio: 3.0", "path: out"]


def test_json_anywhere_prints_json(app, capsys):
    for words in (("double", "1.5", "--json"), ("--json", "double", "1.5")):
        assert status(app, *words) == 0
        assert json.loads(capsys.readouterr().out) == {
            "ratio": 3.0,
            "path": "out",
            "parts": [1, 2],
            "failed": False,
        }


def test_ctrl_c_is_one_line_and_status_130(app, capsys):
    assert status(app, "interrupted") == 130
    out, error = capsys.readouterr()
    assert (out, len(error.splitlines())) == ("", 1)
    assert error.startswith("stopped")


def test_ctrl_c_is_one_line_for_the_root_command_too(monkeypatch, capsys):
    monkeypatch.setattr("noiseworks.core.cli.list_methods", interrupted)
    assert status(root_app(), "list") == 130
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_dataclass_spreads_over_options(monkeypatch, capsys):
    module = types.ModuleType("spread_commands")
    module.area = area
    monkeypatch.setitem(sys.modules, "spread_commands", module)
    commands = {"area": Command("spread_commands:area", "Run area.")}
    app = make_app("frame", commands, distribution="noiseworks-core")
    assert status(app, "area", "--width", "2", "--height", "3") == 0
    assert capsys.readouterr().out == "6.0\n"
    assert status(app, "area", "--help") == 0
    assert "In metres." in capsys.readouterr().out


def test_a_failed_result_ends_with_status_one(app):
    assert status(app, "double", "1", "--fail") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("double", "-1"), "noiseworks-frame: value must be at least 0, got -1.0"),
        (("double", "many"), "many"),
        (("double",), "value"),
        (("double", "1", "--unknown", "2"), "unknown"),
        (
            ("triple", "1"),
            "unknown command 'triple'; commands: double, broken, interrupted, greedy, confused, deep, endless, absent",
        ),
        (
            ("--triple",),
            "unknown option '--triple'; commands: double, broken, interrupted, greedy, confused, deep, endless, absent",
        ),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_status_two(app, capsys, words, message):
    assert status(app, *words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1
    assert message.lower() in captured.err.lower()


def test_debug_shows_the_trace(app):
    with pytest.raises(InputError, match="at least 0"):
        run(app, ["double", "-1", "--debug"])


def test_defects_are_not_disguised_as_bad_input(app):
    with pytest.raises(ZeroDivisionError):
        run(app, ["broken"])
    with pytest.raises(RuntimeError, match="mat1"):
        run(app, ["confused"])


def test_too_little_memory_is_one_line_that_says_so(app, capsys):
    assert status(app, "greedy") == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert "not enough memory" in captured.err
    with pytest.raises(RuntimeError, match="allocate"):
        run(app, ["greedy", "--debug"])


def test_a_file_that_is_nested_too_deeply_is_one_line_and_endless_calls_are_a_defect(app, capsys):
    assert status(app, "deep") == 2
    assert "nested too deeply" in capsys.readouterr().err
    with pytest.raises(RecursionError):
        run(app, ["endless"])


def test_commands_are_imported_when_they_run(app, capsys):
    assert status(app, "--help") == 0
    assert "Import nothing before it runs." in capsys.readouterr().out
    with pytest.raises(ImportError):
        run(app, ["absent"])


def test_results_of_every_kind_are_shown(capsys):
    show(None)
    assert capsys.readouterr().out == ""
    show({"a": 1})
    show([1, 2])
    assert capsys.readouterr().out == "a: 1\n[1, 2]\n"
    show({"a": (Path("x"), 1.0)}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"a": ["x", 1.0]}


def test_messages_are_folded_to_one_line():
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_methods_are_listed_with_their_summaries():
    listing = list_methods()
    first = min(listing.families["Image generation"])
    assert "linear-ag" in listing.families["Image generation"]
    for methods in listing.families.values():
        assert list(methods) == sorted(methods)
        assert all(summary and "\n" not in summary for summary in methods.values())
    assert listing.to_dict()["linear-ag"]["family"] == "Image generation"
    assert str(listing).startswith(f"Image generation\n  {first}: ")


def test_methods_without_a_known_family_are_listed_last():
    grouped = by_family([("b", "images"), ("c", None), ("a", "images"), ("d", "unheard of")])
    assert grouped == {"Image generation": ["a", "b"], "Others": ["c", "d"]}


@pytest.mark.parametrize("words", [["--help"], ["list"]])
def test_help_and_listing_never_import_torch(words):
    code = (
        "import sys\n"
        "from noiseworks.core import cli\n"
        f"sys.argv = ['noiseworks', *{words!r}]\n"
        "try:\n"
        "    cli.main()\n"
        "except SystemExit as end:\n"
        "    assert end.code in (0, None), end.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'triton', 'lightning'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def typed_at_the_root(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["noiseworks", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code, capsys.readouterr()


def test_try_is_the_methods_compare_and_says_so_where_there_is_none(app, monkeypatch, capsys):
    commands = {"compare": Command("frame_commands:double", "Compare.")}
    comparing = make_app("other", commands, distribution="noiseworks-core")
    entries = {
        name: types.SimpleNamespace(load=lambda found=found: found, dist=None, value="x:y")
        for name, found in {"frame": app, "other": comparing}.items()
    }
    monkeypatch.setattr("noiseworks.core.cli.installed_methods", lambda: entries)
    assert typed_at_the_root(monkeypatch, capsys, "try", "other", "1.5")[0] == 0
    code, shown = typed_at_the_root(monkeypatch, capsys, "try", "other", "1.5", "--json")
    assert json.loads(shown.out)["ratio"] == 3.0
    for words, reason in (
        (("try", "frame", "--model", "x"), "frame has no command compare"),
        (("try", "gone", "--model", "x"), "'gone' is not installed; installed: frame, other"),
        (("try",), "method"),
    ):
        code, shown = typed_at_the_root(monkeypatch, capsys, *words)
        assert (code, shown.out, len(shown.err.splitlines())) == (2, "", 1)
        assert reason in shown.err.lower() if words == ("try",) else reason in shown.err


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ([], {}),
        (["--steps", "4"], {"steps": 4}),
        (["--scale", "1"], {"scale": 1.0}),
        (["--solver", "euler"], {"solver": "euler"}),
        (["--sizes", "8"], {"sizes": (8,)}),
        (["--no-sharp"], {"sharp": False}),
        (["--weights", "0.5"], {"weights": (0.5,)}),
        (["--limit", "2", "--kept", "1"], {"limit": 2, "kept": 1}),
    ],
)
def test_options_that_are_not_given_have_the_commands_own_defaults(capsys, words, changed):
    app = make_app("core", {"draw": Command(f"{__name__}:draw", "Draw.")}, distribution="noiseworks-core")
    with pytest.raises(SystemExit):
        run(app, ["draw", *words, "--json"])
    expected = {
        "steps": 15,
        "scale": 2.5,
        "solver": "heun",
        "sizes": [32, 16],
        "sharp": True,
        "weights": [3.0, 4.0],
    }
    expected |= {"limit": None, "kept": 7, "width": 2.0, "height": 1.0}
    shown = {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}
    assert json.loads(capsys.readouterr().out) == expected | shown


def test_help_shows_the_commands_own_defaults_and_leaves_those_of_the_class(capsys):
    app = make_app("core", {"draw": Command(f"{__name__}:draw", "Draw.")}, distribution="noiseworks-core")
    for _ in range(2):
        with pytest.raises(SystemExit):
            run(app, ["draw", "--help"])
        shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert "Of the sampler. [default: 15]" in shown
        assert "Never another. [default: 7]" in shown
    assert Draw().steps == 50
