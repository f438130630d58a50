"""Every installed command answers `--help` at once and refuses bad input with one line and exit status 2."""

import re
import sys

import pytest


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


def test_help_answers_without_loading_torch(command, run):
    done = run(command, "--help", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0, done.stderr
    assert command in done.stdout
    assert not loaded_modules(done.stderr) & {"torch", "diffusers", "transformers", "lightning", "matplotlib"}


def test_noiseworks_dispatches_to_every_method(method, run):
    slug = method.folder.name
    assert run("noiseworks", slug, "--help").stdout == run(f"noiseworks-{slug}", "--help").stdout


def test_noiseworks_lists_every_method_with_its_summary(members, run):
    done = run("noiseworks", "list")
    assert done.returncode == 0, done.stderr
    for member in members:
        if member.is_method:
            assert f"{member.folder.name}: {member.pyproject['project']['description']}" in done.stdout


def test_every_verb_of_a_method_explains_itself(method, run):
    """Each verb's target exists, takes command-line arguments and describes each of them."""
    code = (
        "import io, sys, contextlib\n"
        f"from {method.modules[0]}.cli import app\n"
        "for verb in [name for name in app if not name.startswith('-')]:\n"
        "    text = io.StringIO()\n"
        "    with contextlib.redirect_stdout(text):\n"
        "        app([verb, '--help'], exit_on_error=False)\n"
        "    assert 'Usage' in text.getvalue(), verb\n"
        "    print(verb)\n"
    )
    done = run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(), "a method has at least one verb"


@pytest.mark.parametrize("words", [["no-such-verb"], ["--no-such-option"]])
def test_unknown_words_are_refused(command, words, run, tmp_path):
    assert_refused(run(command, *words, cwd=tmp_path), words[0])
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_trace(run, tmp_path):
    done = run("noiseworks", "no-such-method", "--debug", cwd=tmp_path)
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_json_output_is_json(run):
    import json

    listed = json.loads(run("noiseworks", "list", "--json").stdout)
    assert set(listed) >= {"ldm", "linear-ag"}


def test_help_is_quick_to_load(run):
    """Counts loaded modules instead of seconds, which depend on the machine."""
    done = run("noiseworks", "--help", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0, done.stderr
    modules = re.findall(r"\|\s+([\w.]+)$", done.stderr, re.MULTILINE)
    assert len(modules) < 900, f"{len(modules)} modules are loaded to print the help ({sys.version})"
