"""A newcomer's first hour: types every command of the getting-started page, in order, in an empty folder."""

import re
import shlex

import pytest

SHELL_BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def typed_commands(page: str) -> list[list[str]]:
    """Return the words of each command in the page's ```bash blocks, without the installation of uv."""
    lines = "".join(SHELL_BLOCK.findall(page)).replace("\\\n", " ").splitlines()
    return [shlex.split(line.split("&&")[-1], comments=True) for line in lines if line.strip()]


def at_smoke_scale(words: list[str]) -> list[str]:
    """Return the words of a command, with benches at the smoke scale."""
    if words[:2] != ["noiseworks", "bench"]:
        return words
    if "--scale" in words:
        words[words.index("--scale") + 1] = "smoke"
        return words
    return [*words, "--scale", "smoke"]


@pytest.mark.slow
def test_commands_of_getting_started_work_as_typed(root, run, tmp_path):
    commands = typed_commands((root / "docs/getting-started.md").read_text())
    assert len(commands) >= 4
    for uv, verb, *words in commands:
        assert (uv, verb) == ("uv", "run"), "every command of the page runs in the workspace's environment"
        done = run(*at_smoke_scale(words), cwd=tmp_path, timeout=500)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    assert list(tmp_path.rglob("report.html"))
