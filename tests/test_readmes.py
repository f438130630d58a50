"""README code runs as it stands: every ```python block, in order, one warm process a README, without a network."""

import os
import re
import shutil

import pytest

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INSTALLED = "test_what_a_readme_says_works_where_only_its_install_line_was_typed"
LINK = re.compile(r"\]\(([^)#\s]+)")
MADE = ("reference/", "contributing.md")  # pages that only the site has


def python_blocks(file):
    return BLOCK.findall(file.read_text())


def test_python_blocks_of_a_member_readme_run(member, warm, tmp_path, request):
    """Those of methods run where only their install line was typed, in a session that has `test_wheels.py`."""
    blocks = python_blocks(member.folder / "README.md")
    if member.is_method:
        assert blocks, "a method's README shows its use in Python"
        uv = os.environ.get("UV") or shutil.which("uv")
        if uv and any(item.name.startswith(INSTALLED) for item in request.session.items):
            return
    if blocks:
        script = tmp_path / "readme.py"
        script.write_text("\n\n".join(blocks))
        done = warm("python", script, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/index.md", "docs/getting-started.md"])
def test_python_blocks_of_the_project_pages_run(name, root, warm, tmp_path):
    blocks = python_blocks(root / name)
    if blocks:
        script = tmp_path / "page.py"
        script.write_text("\n\n".join(blocks))
        done = warm("python", script, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_relative_links_of_readmes_lead_somewhere(root, members):
    pages = [
        root / "README.md",
        root / "CONTRIBUTING.md",
        *(member.folder / "README.md" for member in members),
        *(root / "docs").rglob("*.md"),
    ]
    broken = [
        f"{page.relative_to(root)} -> {target}"
        for page in pages
        for target in LINK.findall(page.read_text())
        if not target.startswith(("http://", "https://", "mailto:", *MADE))
        and not (page.parent / target).exists()
    ]
    assert not broken, "\n".join(broken)


def test_readme_names_the_two_commands(root):
    text = (root / "README.md").read_text()
    assert "python3 -m pip install uv && uv run noiseworks bench\n" in text
    assert "python3 -m pip install uv && uv run pytest\n" in text
