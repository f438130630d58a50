"""A newcomer's first hour: types every command of the getting-started page, in order, in an empty folder."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

SHELL_BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def typed_lines(page: str) -> list[str]:
    """Return the lines of a page's ```bash blocks, each as it is typed in an installed environment.

    The installation of uv is done, `uv run` is replaced by the environment that the tests run in, and benches
    run at the smoke scale.
    """
    lines = "".join(SHELL_BLOCK.findall(page)).replace("\\\n", " ").splitlines()
    typed = [line.split("&&")[-1].strip().removeprefix("uv run ") for line in lines if line.strip()]
    return [at_smoke_scale(line) for line in typed]


def at_smoke_scale(line: str) -> str:
    """Return a command line, at the smoke scale when it is a bench."""
    if not line.startswith("noiseworks bench"):
        return line
    return re.sub(r" --scale \w+", "", line) + " --scale smoke"


def offer_finished(line: str, finished: Path, place: Path) -> None:
    """Lay what a bench has measured already of one method where a line's bench will look for it."""
    words = shlex.split(line)
    if {"bench", "--methods", "--out"} <= set(words):
        method, out = (words[words.index(name) + 1] for name in ("--methods", "--out"))
        if (finished / "tasks" / method).exists():
            shutil.copytree(finished / "tasks" / method, place / out / "tasks" / method)


def test_benches_are_typed_at_the_smoke_scale():
    lines = (
        "python3 -m pip install uv && uv run noiseworks bench",
        "uv run noiseworks bench --scale quick -o a",
    )
    page = "```bash\n{}\n```\n".format("\n".join(lines))
    assert typed_lines(page) == ["noiseworks bench --scale smoke", "noiseworks bench -o a --scale smoke"]


@pytest.mark.timeout(1800)  # where it is the first to need every claim's smoke run
def test_commands_of_getting_started_work_as_typed(root, run, warm, smoke, tmp_path):
    """A bench of one method takes over what the smoke run has measured of it, and reports on it."""
    lines = typed_lines((root / "docs/getting-started.md").read_text())
    assert len(lines) >= 6
    for line in lines:
        if line == "noiseworks bench --scale smoke":
            assert (smoke / "smoke" / "report.html").exists(), (smoke / "smoke.txt").read_text()[-4000:]
            continue
        offer_finished(line, smoke / "smoke", tmp_path)
        if line.startswith("noiseworks"):
            done = warm(*shlex.split(line), cwd=tmp_path)
        else:
            done = run("bash", "-c", line, cwd=tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    assert list(tmp_path.rglob("report.html"))
    assert list((tmp_path / "my-images").glob("*.png"))
