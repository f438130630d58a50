"""Every package has the same rooms: licence, typing marker, README sections, command line, claim, tests."""

import ast
import re
import subprocess
import tomllib
from importlib.metadata import distribution
from itertools import chain

from noiseworks.core.families import COSTS, FAMILIES, cost_of, family_of
from noiseworks.dev.contracts import app_of

METHOD_FILES = ("cli.py", "claim.py", "__init__.py", "py.typed")
# Code lines (without docstrings, imports and blank lines), public names, parameters of one public function, and bytes
# of shipped weights.
MOST = {"total": 1700, "commands": 120, "claim": 120, "names": 12, "parameters": 6, "weights": 1.5e6}
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
    for room in ("contract.py", "test_*.py"):
        assert list((method.folder / "tests").glob(room)), f"{slug} has no tests/{room}"


def test_method_registers_command_method_and_claim(method):
    slug, module = method.folder.name, method.modules[0]
    assert method.scripts == {f"noiseworks-{slug}": f"{module}.cli:main"}
    assert method.entry_points("noiseworks.methods") == {slug: f"{module}.cli:app"}
    assert method.entry_points("noiseworks.claims") == {slug: f"{module}.claim:CLAIM"}


def test_method_says_its_family_and_what_it_costs(method):
    words = method.pyproject["project"].get("keywords", [])
    assert len(set(words) & set(FAMILIES)) == 1, f"keywords name one of {', '.join(FAMILIES)}"
    assert len(set(words) & set(COSTS)) == 1, f"keywords name one of {', '.join(COSTS)}"
    installed = distribution(method.name)
    assert (family_of(installed), cost_of(installed)) == tuple(words[:2]), "an installed method shows them"


def test_what_needs_no_training_can_be_tried_beside_what_is_done_now(method):
    """`noiseworks try` is the verb compare; the theory's checks are of data and have nothing to stand beside."""
    keywords = set(method.pyproject["project"]["keywords"])
    if keywords & {"training-free", "calibrates"} and "theory" not in keywords:
        assert "compare" in set(app_of(method.folder.name))


def test_lists_of_the_root_are_sorted_and_complete(members, root):
    """Two branches that add a package each then touch different lines."""
    pyproject = tomllib.loads((root / "pyproject.toml").read_text())
    methods = sorted(member.name for member in members if member.is_method)
    sources = list(pyproject["tool"]["uv"]["sources"])
    assert [name for name in sources if name in methods] == methods
    dev = [str(one).partition("[")[0] for one in pyproject["dependency-groups"]["dev"]]
    assert [name for name in dev if name in methods] == methods


def test_method_readme_has_every_section(method):
    text = (method.folder / "README.md").read_text()
    headings = [heading.lower() for heading in re.findall(r"^#{1,3} (.+)$", text, re.MULTILINE)]
    missing = [
        topic for topic, words in README_TOPICS.items() if not any(re.search(words, h) for h in headings)
    ]
    assert not missing, f"{method.folder.name}/README.md has no section on: {', '.join(missing)}"
    assert "arxiv" in text.lower(), "the README cites its paper by arXiv number"
    assert "```python" in text


def test_method_page_has_a_picture(method, root):
    """Made by the method's own command, small, with a text for those who do not see it."""
    text = (method.folder / "README.md").read_text()
    pictures = re.findall(r"^!\[([^\]]*)\]\(([^)\s]+)\)$", text, re.MULTILINE)
    assert pictures, f"{method.folder.name}/README.md shows no picture"
    for words, target in pictures:
        file = method.folder / target
        assert file.suffix in (".webp", ".png", ".svg")
        assert file.is_file(), f"{method.folder.name}/README.md shows {target}, which does not exist"
        assert file.stat().st_size <= 40_000, f"{file.relative_to(root)} is larger than 40 kB"
        assert len(words) >= 20, f"{method.folder.name}/README.md does not say what {target} shows"


def code_lines(file):
    """Return how many lines of a file are code: neither docstring, comment, import nor blank."""
    text = file.read_text()
    skipped = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            skipped |= set(range(node.lineno, node.end_lineno + 1))
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            skipped |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and n not in skipped for n, line in lines
    )


def most_parameters(file):
    """Return the largest number of parameters of a public function or method of a file, without self."""
    functions = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)]
    counts = [
        sum(a.arg not in ("self", "cls") for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs))
        for f in functions
        if not f.name.startswith("_")
    ]
    return max(counts, default=0)


def test_method_keeps_its_budgets(method):
    """A package that needs more says why, one line a room: `[tool.noiseworks.over-budget]` of its pyproject."""
    sizes = {file.relative_to(method.folder): code_lines(file) for file in method.sources}
    commands = sum(size for file, size in sizes.items() if file.name == "cli.py" or "command" in file.name)
    stub = method.folder / "src" / method.modules[0].replace(".", "/") / "__init__.pyi"
    found = {
        "total": sum(sizes.values()),
        "commands": commands,
        "claim": sum(size for file, size in sizes.items() if file.name == "claim.py"),
        "names": stub.read_text().count(" as ") if stub.exists() else MOST["names"] + 1,
        "parameters": max(map(most_parameters, method.sources)),
        "weights": sum(file.stat().st_size for file in (method.folder / "src").rglob("*.safetensors")),
    }
    reasons = method.pyproject["tool"].get("noiseworks", {}).get("over-budget", {})
    over = {room: size for room, size in found.items() if size > MOST[room]}
    assert set(over) <= set(reasons), (
        f"{method.folder.name} is over { ({room: MOST[room] for room in over}) }: {over}"
    )
    assert set(reasons) <= set(over), f"{method.folder.name} excuses rooms that keep their budget"


def test_test_files_have_unique_names(members, root):
    files = [file for member in members for file in (member.folder / "tests").rglob("test_*.py")]
    names = [file.name for file in [*files, *(root / "tests").glob("test_*.py")]]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)


def test_shipped_files_stay_small(root):
    """Weights are at most 8 MB a file and 96 MB together, so that a clone stays cheap."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    sizes = {
        name: (root / name).lstat().st_size for name in tracked.split("\0") if name and (root / name).exists()
    }
    weights = {name: size for name, size in sizes.items() if name.endswith(".safetensors")}
    assert all(size <= 8e6 for size in weights.values()), weights
    assert sum(weights.values()) <= 96e6
    pickles = [name for name in sizes if name.endswith((".pt", ".pth", ".bin", ".ckpt", ".pkl", ".npy"))]
    assert not pickles, f"no pickled or unnamed weights are shipped: {pickles}"
