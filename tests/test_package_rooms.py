"""Every package has the same rooms: licence, typing marker, README sections, command line, claim, tests."""

import re
import subprocess
from itertools import chain

METHOD_FILES = ("cli.py", "claim.py", "__init__.py", "py.typed")
README_TOPICS = {
    "what it does": r"what it does|overview",
    "when to use it": r"when to use",
    "example": r"example|in five lines|quick start",
    "claim": r"claim",
    "knobs": r"knobs|settings|options",
    "differences from the paper": r"differ",
    "limits": r"limit",
    "citation": r"citation|cite",
}


def test_member_ships_the_licence_of_the_project(member, root):
    assert (member.folder / "LICENSE").read_text() == (root / "LICENSE").read_text()
    project = member.pyproject["project"]
    assert project["license"] == "Apache-2.0"
    assert project["license-files"] == ["LICENSE"]


def test_member_is_typed(member):
    for module in member.modules:
        marker = member.folder / "src" / module.replace(".", "/") / "py.typed"
        assert marker.exists(), f"{marker} is missing"


def test_versions_move_together(members):
    versions = {member.pyproject["project"]["version"] for member in members}
    assert len(versions) == 1
    version = versions.pop()
    for member in members:
        project = member.pyproject["project"]
        for requirement in chain(project["dependencies"], *project.get("optional-dependencies", {}).values()):
            if requirement.startswith("noiseworks-"):
                assert requirement.endswith(f"=={version}"), (
                    f"{member.name}: {requirement} pins another version"
                )


def test_member_states_a_summary_that_help_can_show(member):
    summary = member.pyproject["project"]["description"]
    assert summary.endswith(".")
    assert "\n" not in summary
    assert len(summary) <= 200


def test_method_has_every_room(method):
    slug = method.folder.name
    package = method.folder / "src/noiseworks" / slug.replace("-", "_")
    assert method.name == f"noiseworks-{slug}"
    assert method.modules == [f"noiseworks.{slug.replace('-', '_')}"]
    missing = [name for name in METHOD_FILES if not (package / name).exists()]
    assert not missing, f"{slug} lacks {missing}"
    assert list((method.folder / "tests").glob("test_*.py")), f"{slug} has no tests"


def test_method_registers_command_method_and_claim(method):
    slug, module = method.folder.name, method.modules[0]
    assert method.scripts == {f"noiseworks-{slug}": f"{module}.cli:main"}
    assert method.entry_points("noiseworks.methods") == {slug: f"{module}.cli:app"}
    assert method.entry_points("noiseworks.claims") == {slug: f"{module}.claim:CLAIM"}


def test_method_readme_has_every_section(method):
    text = (method.folder / "README.md").read_text()
    headings = [heading.lower() for heading in re.findall(r"^#{1,3} (.+)$", text, re.MULTILINE)]
    missing = [
        topic for topic, words in README_TOPICS.items() if not any(re.search(words, h) for h in headings)
    ]
    assert not missing, f"{method.folder.name}/README.md has no section on: {', '.join(missing)}"
    assert "arxiv" in text.lower(), "the README cites its paper by arXiv number"
    assert "```python" in text


def test_public_names_fit_on_one_screen(method, run):
    module = method.modules[0]
    code = f"import {module} as m; assert all(hasattr(m, n) for n in m.__all__); print(len(m.__all__))"
    done = run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    assert 1 <= int(done.stdout) <= 40


def test_test_files_have_unique_names(members, root):
    files = [file for member in members for file in (member.folder / "tests").rglob("test_*.py")]
    names = [file.name for file in [*files, *(root / "tests").glob("test_*.py")]]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)


def test_shipped_files_stay_small(root):
    """Weights are at most 8 MB a file and 32 MB together, so that a clone stays cheap."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    sizes = {
        name: (root / name).lstat().st_size for name in tracked.split("\0") if name and (root / name).exists()
    }
    weights = {name: size for name, size in sizes.items() if name.endswith(".safetensors")}
    assert all(size <= 8e6 for size in weights.values()), weights
    assert sum(weights.values()) <= 32e6
    pickles = [name for name in sizes if name.endswith((".pt", ".pth", ".bin", ".ckpt", ".pkl", ".npy"))]
    assert not pickles, f"no pickled or unnamed weights are shipped: {pickles}"
