"""Every installed command answers `--help` at once and refuses bad input with one line and exit status 2."""

import json
import re
import sys
from importlib import import_module
from importlib.metadata import entry_points

import pytest
from members import chosen
from noiseworks.core.cli import root_app
from noiseworks.dev.contracts import typed


def loaded_modules(importtime: str) -> set[str]:
    """Return the top-level names in the report that Python writes under `PYTHONPROFILEIMPORTTIME`."""
    return {name.split(".")[0] for name in re.findall(r"\|\s+([\w.]+)$", importtime, re.MULTILINE)}


def assert_refused(done, *words):
    """One line on stderr that names the words, exit status 2, nothing on stdout."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stdout == ""
    for word in words:
        assert str(word) in done.stderr


@pytest.fixture(scope="session")
def cold(run, root):
    """What one cold process found out about the command lines of all methods."""
    slugs = [m.folder.name for m in chosen() if m.is_method]
    done = run("python", root / "tests/cold_commands.py", *slugs, PYTHONPATH=str(root / "tests"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_refusals_and_claims_load_nothing_heavy(cold):
    """Help of every verb, a value outside of each bound of each option, and the claim, in a process without torch."""
    assert {slug: record["heavy"] for slug, record in cold.items() if record["heavy"]} == {}


def test_every_verb_explains_each_of_its_options(cold):
    for slug, record in cold.items():
        assert record["help"], f"{slug} has no verb"
        for verb, shown in record["help"].items():
            assert "Usage" in shown["text"], f"{slug} {verb}"
            assert shown["lost"] == [], f"{slug} {verb}: a docstring's text does not survive rendering"


def test_values_out_of_range_are_one_line_that_names_the_option(cold):
    for slug, record in cold.items():
        for refused in record["refused"]:
            assert refused["status"] == 2, f"{slug} {refused}"
            assert refused["stdout"] == "", f"{slug} {refused}"
            assert len(refused["stderr"].splitlines()) == 1, f"{slug} {refused}"
            assert refused["option"].replace("_", "-") in refused["stderr"].replace("_", "-"), (
                f"{slug} {refused}"
            )


def test_no_number_of_a_command_takes_what_is_none(cold):
    """Neither NaN, infinities, texts and lists, nor fractions and more than 63 bits where wholes are asked for."""
    assert {slug: record["nonsense"] for slug, record in cold.items() if record["nonsense"]} == {}


def test_help_of_the_shared_commands_loads_neither_torch_nor_numpy(run):
    for command in (("noiseworks",), ("noiseworks", "bench"), ("noiseworks-first-hitting", "claim")):
        done = run(*command, "--help", PYTHONPROFILEIMPORTTIME="1")
        assert done.returncode == 0, done.stderr
        assert command[-1] in done.stdout
        assert not loaded_modules(done.stderr) & {
            "torch",
            "diffusers",
            "transformers",
            "lightning",
            "matplotlib",
            "numpy",
            "packaging",
        }


def test_noiseworks_dispatches_to_its_methods(members, run):
    for slug in [member.folder.name for member in members if member.is_method][::8]:
        assert run("noiseworks", slug, "--help").stdout == run(f"noiseworks-{slug}", "--help").stdout


def test_noiseworks_lists_every_method_with_its_summary(members, run):
    done = run("noiseworks", "list")
    assert done.returncode == 0, done.stderr
    for member in members:
        if member.is_method:
            assert f"{member.folder.name}: {member.pyproject['project']['description']}" in done.stdout


@pytest.mark.parametrize("words", [["no-such-verb"], ["--no-such-option"]])
def test_unknown_words_are_refused(command, words, tmp_path):
    (entry,) = entry_points(group="console_scripts", name=command)
    app = root_app() if command == "noiseworks" else import_module(entry.module).app
    assert_refused(typed(app, words, tmp_path), words[0])
    assert not list(tmp_path.iterdir())


def test_program_refuses_as_its_app_does(run, tmp_path):
    assert_refused(run("noiseworks", "no-such-verb", cwd=tmp_path), "no-such-verb")


def test_debug_shows_the_trace(run, tmp_path):
    done = run("noiseworks", "no-such-method", "--debug", cwd=tmp_path)
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_json_output_is_json(run):
    listed = json.loads(run("noiseworks", "list", "--json").stdout)
    assert set(listed) >= {"ldm", "linear-ag"}


def test_help_is_quick_to_load(run):
    """Counts loaded modules instead of seconds, which depend on the machine."""
    done = run("noiseworks", "--help", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0, done.stderr
    modules = re.findall(r"\|\s+([\w.]+)$", done.stderr, re.MULTILINE)
    assert len(modules) < 900, f"{len(modules)} modules are loaded to print the help ({sys.version})"
