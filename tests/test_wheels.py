"""What a user installs: each built wheel alone in an empty environment, and the install lines of the README.

Third-party packages come from uv's cache in the versions of `uv.lock`, as hard links, so an environment costs
about a second. A process makes all its environments at one path, one after the other, and keeps Python's compiled
files beside it: what one environment compiled, the next one finds, and what these tests' own environment compiled of
the same files is there from the start.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

# `uv run` names its own executable in UV, also where no `uv` is on the path.
UV = os.environ.get("UV") or shutil.which("uv")

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
    """A git repository that holds the tracked files as they are now, committed or not."""
    folder = tmp_path_factory.mktemp("repository")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (root / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, folder / name)
    identity = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "Snapshot"]):
        subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where this process makes its environments, and keeps what Python compiles for them."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("installed")
        patch.setenv("PYTHONPYCACHEPREFIX", str(folder / "compiled"))
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        installed = Path("lib", f"python{sysconfig.get_python_version()}", "site-packages")
        offer_compiled(folder / "compiled" / (folder / "environment" / installed).relative_to("/"))
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


def assert_linear_ag_works(environment: Path):
    done = python(
        environment, "-c", "import noiseworks.linear_ag as m; print([getattr(m, n) for n in m.__all__])"
    )
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [str(environment / "bin" / "noiseworks-linear-ag"), "--help"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def install(environment: Path, wheels: Path, constraints: Path, line: str) -> None:
    """Install a wheel with what it depends on, from the folder of wheels and the versions of the lock."""
    places = ("--python", environment, "--find-links", wheels, "-c", constraints)
    uv("pip", "install", "--quiet", *places, *fresh(wheels), line)


def fresh(wheels: Path) -> list[str]:
    """Keep uv from taking an older build of the same version at the same place from its cache."""
    names = sorted(wheel.name.split("-")[0].replace("_", "-") for wheel in wheels.glob("*.whl"))
    return [word for name in names for word in ("--refresh-package", name)]


# Imports modules with all their public names, then waits, and runs a script with what was installed meanwhile.
NAMES_THEN_SCRIPT = """
import importlib, runpy, sys
for name in sys.argv[2:]:
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", []):
        getattr(module, public)
print("imported", flush=True)
if sys.stdin.readline():
    importlib.invalidate_caches()
    runpy.run_path(sys.argv[1], run_name="__main__")
"""


def test_wheel_brings_what_its_names_help_examples_and_claim_need(member, wheels, constraints, environment):
    """Names and command line with the wheel alone, examples with the README's install line, the claim with its extra.

    The names and the examples share a process, as importing the hosts costs more than the examples do. Where they
    fail in it, because a library looks for another one only when it is imported, a new process decides.
    """
    install(environment, wheels, constraints, member.name)
    helped = [[name, "--help"] for name in member.scripts]
    helped += [["noiseworks", name, "--help"] for name in member.entry_points("noiseworks.commands")]
    for program, *words in helped:
        done = subprocess.run(
            [str(environment / "bin" / program), *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    script, log = environment / "readme.py", environment / "log.txt"
    words = [environment / "bin" / "python", "-c", NAMES_THEN_SCRIPT, script, *member.modules]
    with log.open("w") as errors:
        process = subprocess.Popen(
            words, cwd=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        assert process.stdout.readline() == "imported\n", log.read_text()
        if member.is_method:
            text = (member.folder / "README.md").read_text()
            lines = re.findall(
                r'^pip install "(noiseworks-[^"]+)"$', text.partition("```python")[0], re.MULTILINE
            )
            assert lines, "a line that installs the method stands above its first example"
            for line in lines:
                install(environment, wheels, constraints, line)
            script.write_text("\n\n".join(python_blocks(text)))
            process.communicate("go on\n", timeout=300)
            if process.returncode:
                done = python(environment, str(script), cwd=environment)
                assert done.returncode == 0, done.stderr
    finally:
        process.kill()
        process.communicate()
    if member.is_method:
        install(environment, wheels, constraints, f"{member.name}[bench]")
        done = python(environment, "-c", f"from {member.modules[0]}.claim import CLAIM; print(CLAIM.method)")
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == member.folder.name


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
    assert_linear_ag_works(environment_with_pip)


def test_uv_pip_installs_from_a_subdirectory_of_the_repository(repository, constraints, environment):
    """uv reads the workspace of the repository and takes noiseworks-core from there."""
    line = f"noiseworks-linear-ag @ git+{repository.as_uri()}#subdirectory=packages/linear-ag"
    uv("pip", "install", "--quiet", "--python", environment, "-c", constraints, line)
    assert_linear_ag_works(environment)


def test_uv_adds_from_a_subdirectory_of_the_repository(repository, constraints, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        '[project]\nname = "somebodys-project"\nversion = "0"\nrequires-python = ">=3.12,<3.14"\n'
    )
    line = f"noiseworks-linear-ag @ git+{repository.as_uri()}#subdirectory=packages/linear-ag"
    uv("add", "--quiet", "--python", sys.executable, "-c", constraints, line, cwd=project)
    assert_linear_ag_works(project / ".venv")
    shutil.rmtree(project / ".venv")


def test_pip_installs_from_subdirectories_of_the_repository(repository, environment_with_pip):
    """pip does not read workspaces: the core's subdirectory is named first, on the same line."""
    lines = [
        f"noiseworks-core @ git+{repository.as_uri()}#subdirectory=shared",
        f"noiseworks-linear-ag @ git+{repository.as_uri()}#subdirectory=packages/linear-ag",
    ]
    done = python(environment_with_pip, "-m", "pip", "install", *lines)
    assert done.returncode == 0, done.stderr
    assert_linear_ag_works(environment_with_pip)
