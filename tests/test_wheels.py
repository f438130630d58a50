"""What a user installs: each built wheel alone in an empty environment, and the install lines of the README.

Third-party packages come from uv's cache in the versions of `uv.lock`, as hard links, so an environment costs
about a second. A process makes all its environments at one path, one after the other, and keeps Python's compiled
files beside it: what one environment compiled, the next one finds, and what these tests' own environment compiled of
the same files is there from the start.
"""

import configparser
import email
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from closures import brought
from members import Member, chosen, workspace
from noiseworks.dev.warm import MODULES, Warm
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

# `uv run` names its own executable in UV, also where no `uv` is on the path.
UV = os.environ.get("UV") or shutil.which("uv")

TEXTS = {".py", ".pyi", ".toml", ".md", ".lock", ""}  # what a member is built from, and a lone LICENSE
SITE = Path("lib", f"python{sysconfig.get_python_version()}", "site-packages")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(UV is None, reason="uv builds and installs the wheels"),
]


def uv(*words, cwd=None, check=True):
    done = subprocess.run(
        [UV, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=500, check=False
    )
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def constraints(root, tmp_path_factory):
    """The versions of the lock, so that no other ones are downloaded."""
    file = tmp_path_factory.mktemp("lock") / "constraints.txt"
    everything = ("--all-packages", "--all-extras", "--all-groups", "--no-emit-workspace", "--no-hashes")
    uv("export", "--frozen", "--quiet", *everything, "--output-file", file, cwd=root)
    return file


@pytest.fixture(scope="module")
def wheels(root, tmp_path_factory):
    """The wheels of all members: those that NOISEWORKS_DIST names, or built now."""
    if "NOISEWORKS_DIST" in os.environ:
        return root / os.environ["NOISEWORKS_DIST"]
    folder = tmp_path_factory.mktemp("wheels")
    uv("build", "--all-packages", "--wheel", "--python", sys.executable, "--out-dir", folder, cwd=root)
    return folder


@pytest.fixture(scope="module")
def repository(root, tmp_path_factory):
    """A git repository that holds the tracked files as they are now, committed or not.

    Weights and results of other members are left out, and nothing is packed tightly: git would spend its time on them.
    """
    folder = tmp_path_factory.mktemp("repository")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        needed = name.startswith(("shared/src", "packages/linear-ag/")) or (root / name).suffix in TEXTS
        if needed and (root / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, folder / name)
    settings = {
        "user.name": "tests",
        "user.email": "tests@localhost",
        "core.compression": "0",
        "pack.window": "0",
    }
    git = [["init", "--quiet"], *(["config", *one] for one in settings.items())]
    for words in (*git, ["add", "--all"], ["commit", "--quiet", "-m", "Snapshot"]):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where this process makes its environments, and keeps what Python compiles for them."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("installed")
        patch.setenv("PYTHONPYCACHEPREFIX", str(folder / "compiled"))
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        offer_compiled(folder / "compiled" / (folder / "environment" / SITE).relative_to("/"))
        yield folder


def offer_compiled(target: Path) -> None:
    """Link what this environment has compiled of third-party packages below the folder where Python will look for it.

    Python takes a compiled file only where the source has the time and size that it was compiled from, and where it
    compiles anew it replaces the link, not what it leads to.
    """
    source = Path(sysconfig.get_path("purelib"))
    for folder, _, names in os.walk(source):
        if Path(folder).name == "__pycache__":
            mirrored = target / Path(folder).parent.relative_to(source)
            mirrored.mkdir(parents=True, exist_ok=True)
            for name in names:
                (mirrored / name).symlink_to(Path(folder, name))


@pytest.fixture
def environment(place):
    """An empty virtual environment, removed after the test."""
    folder = place / "environment"
    uv("venv", "--quiet", "--python", sys.executable, folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def environment_with_pip(environment, wheels, constraints):
    """An environment with pip and everything that linear-ag needs from outside the workspace."""
    options = ("--quiet", "--python", environment)
    places = ("-c", constraints, "--find-links", wheels, *fresh(wheels))
    uv("pip", "install", *options, *places, "pip", "noiseworks-linear-ag")
    uv("pip", "uninstall", *options, "noiseworks-linear-ag", "noiseworks-core")
    return environment


def python_blocks(page: str) -> list[str]:
    """Return the ```python blocks of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def python(environment: Path, *words, cwd=None):
    return subprocess.run(
        [str(environment / "bin" / "python"), *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def assert_linear_ag_works(environment: Path, wheels: Path):
    """The files of the wheels, which the tests above try, are there with all that they need, and help answers."""
    for name in ("noiseworks_linear_ag", "noiseworks_core"):
        (wheel,) = wheels.glob(f"{name}-*.whl")
        packed = {
            one for one in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in one and one[-1] != "/"
        }
        (folder,) = (environment / SITE).glob(f"{name}-*.dist-info")
        listed = {line.split(",")[0] for line in (folder / "RECORD").read_text().splitlines()}
        assert packed <= listed
        assert not [one for one in packed if not (environment / SITE / one).is_file()]
    uv("pip", "check", "--quiet", "--python", environment)
    done = subprocess.run(
        [str(environment / "bin" / "noiseworks-linear-ag"), "--help"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def install(environment: Path, wheels: Path, constraints: Path, *lines: str) -> None:
    """Install wheels with what they depend on, from the folder of wheels and the versions of the lock."""
    places = ("--python", environment, "--find-links", wheels, "-c", constraints)
    uv("pip", "install", "--quiet", *places, *fresh(wheels), *lines)


def fresh(wheels: Path) -> list[str]:
    """Keep uv from taking an older build of the same version at the same place from its cache."""
    names = sorted(wheel.name.split("-")[0].replace("_", "-") for wheel in wheels.glob("*.whl"))
    return [word for name in names for word in ("--refresh-package", name)]


# What a process with one member and what it brings does: argument 1 is its job, a file of JSON.
PROGRAM = """
import importlib, json, os, runpy, sys
from importlib.metadata import entry_points

with open(sys.argv[1]) as file:
    job = json.load(file)
sys.path[:0] = job["path"]
importlib.invalidate_caches()
for words in job["help"]:
    sys.argv = [*words, "--help"]
    (entry,) = entry_points(group="console_scripts", name=words[0])
    try:
        entry.load()()
    except SystemExit as leave:
        assert not leave.code, words
for name in job["modules"]:
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", []):
        getattr(module, public)
if job["script"]:
    sys.argv = [job["script"]]
    runpy.run_path(job["script"], run_name="__main__")
for name in job["claims"]:
    (entry,) = entry_points(group="noiseworks.claims", name=name)
    assert entry.load().method == name
rooms = {name.split(".")[1] for name in sys.modules if name.startswith("noiseworks.")}
assert rooms <= set(job["rooms"]), rooms
"""


@dataclass(frozen=True)
class Job:
    """A member as one of its install lines brings it, and what is done with it there."""

    member: Member
    lines: tuple[str, ...]
    is_readme: bool

    @property
    def brought(self) -> frozenset[str]:
        """The distributions beside the member's own."""
        return brought(*self.lines) - {self.member.name}


def jobs_of(member) -> list[Job]:
    """Return the jobs of a member: its README by the README's own lines, and its claim where those lack the bench."""
    if not member.is_method:
        return [Job(member, (member.name,), True)]
    text = (member.folder / "README.md").read_text().partition("```python")[0]
    lines = tuple(re.findall(r'^pip install "(noiseworks-[^"]+)"$', text, re.MULTILINE))
    assert lines, f"a line that installs {member.name} stands above its first example"
    readme, bench = Job(member, lines, True), Job(member, (f"{member.name}[bench]",), False)
    return [readme] if "noiseworks-bench" in readme.brought else [readme, bench]


def groups() -> dict[str, list[Job]]:
    """Return all jobs by what they need installed; the name of a group is that of its first member and its size."""
    by_need = {}
    for job in [job for member in chosen() for job in jobs_of(member)]:
        by_need.setdefault(job.brought, []).append(job)
    return {f"{len(jobs)} as {jobs[0].lines[0]}": jobs for jobs in by_need.values()}


def pytest_generate_tests(metafunc):
    if "group" in metafunc.fixturenames:
        found = groups()
        metafunc.parametrize("group", list(found.values()), ids=list(found))


def apart(environment: Path, group: list[Job]) -> dict[str, list[str]]:
    """Move what uv installed of the workspace out of the environment, and return each member's path of imports.

    On a path is the member, and the rest of the workspace that its line brings, as if nothing else were installed.
    """
    installed = environment / SITE
    rooms = {folder.name: folder for folder in (installed / "noiseworks").iterdir()}
    shared = {name for name in group[0].brought if name.startswith("noiseworks-")}
    paths = {}
    for owner in workspace():
        if owner.name not in shared and owner.name not in {job.member.name for job in group}:
            continue
        target = environment / ("beside" if owner.name in shared else owner.name)
        (target / "noiseworks").mkdir(parents=True, exist_ok=True)
        for module in owner.modules:
            rooms[module.split(".")[1]].rename(target / "noiseworks" / module.split(".")[1])
        (information,) = installed.glob(f"{owner.name.replace('-', '_')}-*.dist-info")
        information.rename(target / information.name)
        paths[owner.name] = [str(target)]
    assert not [path.name for path in (installed / "noiseworks").iterdir()], (
        "what nobody asked for was installed"
    )
    return {job.member.name: [*paths[job.member.name], str(environment / "beside")] for job in group}


def imported(member: Member) -> list[str]:
    """Return what is imported where only the member's line was typed: all of the core, which works without any host."""
    modules = map(member.module_of, member.sources)
    return member.modules + [name for name in modules if name.startswith("noiseworks.core.")]


@pytest.mark.timeout(1500)  # a dozen members
def test_what_a_readme_says_works_where_only_its_install_line_was_typed(
    group, wheels, constraints, environment
):
    """Help, public names, examples and claim of each member, with the wheels that its line brings and no others.

    Members whose lines bring the same distributions share an environment, and the import of the hosts: what loads them
    once forks a process for each member, in which no other member can be imported.
    """
    install(environment, wheels, constraints, *[line for job in group for line in job.lines])
    for job in group:
        assert all((environment / "bin" / name).exists() for name in job.member.scripts)
    paths = apart(environment, group)
    program = environment / "program.py"
    program.write_text(PROGRAM)
    warm = Warm(environment, environment / "bin" / "python", MODULES if len(group) > 1 else ())
    failed = {}
    try:
        for job in group:
            member, folder = job.member, environment / f"work-{job.member.name}"
            folder.mkdir()
            blocks = python_blocks((member.folder / "README.md").read_text()) if member.is_method else []
            if job.is_readme and blocks:
                (folder / "readme.py").write_text("\n\n".join(blocks))
            verbs = [["noiseworks", name] for name in member.entry_points("noiseworks.commands")]
            beside = {name for one in workspace() if one.name in job.brought for name in one.modules}
            task = {
                "path": paths[member.name],
                "help": [[name] for name in member.scripts] + verbs if job.is_readme else [],
                "modules": imported(member) if job.is_readme else [],
                "script": str(folder / "readme.py") if job.is_readme and blocks else None,
                "claims": list(member.entry_points("noiseworks.claims"))
                if "noiseworks-bench" in job.brought
                else [],
                "rooms": [name.split(".")[1] for name in (*member.modules, *beside)],
            }
            (folder / "job.json").write_text(json.dumps(task))
            done = warm("python", program, folder / "job.json", cwd=folder)
            if done.returncode:
                failed[member.name] = done.stderr[-3000:]
    finally:
        warm.close()
    assert not failed, "\n".join(f"{name}: {text}" for name, text in failed.items())


def test_a_wheel_says_what_its_pyproject_says(member, wheels):
    """What it needs, by extra, and its entry points: an installer reads nothing else."""
    (wheel,) = wheels.glob(f"{member.name.replace('-', '_')}-*.whl")
    with zipfile.ZipFile(wheel) as file:
        (folder,) = {name.split("/")[0] for name in file.namelist() if ".dist-info/" in name}
        metadata = email.message_from_bytes(file.read(f"{folder}/METADATA"))
        entries = configparser.ConfigParser(delimiters=("=",))
        if f"{folder}/entry_points.txt" in file.namelist():
            entries.read_string(file.read(f"{folder}/entry_points.txt").decode())
    project = member.pyproject["project"]
    needed = {Requirement(line) for line in project["dependencies"]}
    for extra, lines in project.get("optional-dependencies", {}).items():
        for one in map(Requirement, lines):
            both = f"({one.marker}) and " if one.marker else ""
            one.marker = Marker(f'{both}extra == "{extra}"')
            needed.add(one)
    assert {*map(Requirement, metadata.get_all("Requires-Dist"))} == needed
    assert SpecifierSet(metadata["Requires-Python"]) == SpecifierSet(project["requires-python"])
    groups = {"console_scripts": member.scripts, **project.get("entry-points", {})}
    assert {name: dict(entries[name]) for name in entries.sections()} == {
        k: v for k, v in groups.items() if v
    }


def test_wheel_holds_what_the_source_folder_holds(member, wheels, root):
    """Shipped models, templates, licences and typing markers are in the wheel; tests are not."""
    (wheel,) = wheels.glob(f"{member.name.replace('-', '_')}-*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    listed = subprocess.run(
        ["git", "ls-files", "src"], cwd=member.folder, capture_output=True, text=True, check=True
    )
    tracked = {name.removeprefix("src/") for name in listed.stdout.splitlines()}
    assert tracked <= packed
    assert not [name for name in packed if "tests/" in name or "__pycache__" in name]
    assert any(name.endswith("licenses/LICENSE") for name in zipfile.ZipFile(wheel).namelist())


def test_pip_installs_from_a_folder_of_wheels(wheels, environment_with_pip):
    """`pip install --find-links dist noiseworks-linear-ag`; the rest is there before, to spare a download."""
    words = ("install", "--no-index", "--find-links", str(wheels), "noiseworks-linear-ag")
    done = python(environment_with_pip, "-m", "pip", *words)
    assert done.returncode == 0, done.stderr
    assert_linear_ag_works(environment_with_pip, wheels)


def test_uv_pip_installs_from_a_subdirectory_of_the_repository(repository, wheels, constraints, environment):
    """uv reads the workspace of the repository and takes noiseworks-core from there."""
    line = f"noiseworks-linear-ag @ git+{repository.as_uri()}#subdirectory=packages/linear-ag"
    uv("pip", "install", "--quiet", "--python", environment, "-c", constraints, line)
    assert_linear_ag_works(environment, wheels)


def test_uv_adds_from_a_subdirectory_of_the_repository(repository, wheels, constraints, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        '[project]\nname = "somebodys-project"\nversion = "0"\nrequires-python = ">=3.12,<3.14"\n'
    )
    line = f"noiseworks-linear-ag @ git+{repository.as_uri()}#subdirectory=packages/linear-ag"
    uv("add", "--quiet", "--python", sys.executable, "-c", constraints, line, cwd=project)
    assert_linear_ag_works(project / ".venv", wheels)
    shutil.rmtree(project / ".venv")


def test_pip_installs_from_subdirectories_of_the_repository(repository, wheels, environment_with_pip):
    """pip does not read workspaces: the core's subdirectory is named first, on the same line."""
    lines = [
        f"noiseworks-core @ git+{repository.as_uri()}#subdirectory=shared",
        f"noiseworks-linear-ag @ git+{repository.as_uri()}#subdirectory=packages/linear-ag",
    ]
    done = python(environment_with_pip, "-m", "pip", "install", *lines)
    assert done.returncode == 0, done.stderr
    assert_linear_ag_works(environment_with_pip, wheels)
