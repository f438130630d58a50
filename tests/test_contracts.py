"""Every package keeps its contract: lines that work, lines that are refused, hosts, artifacts, resumed training."""

import csv
import fnmatch
import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
from noiseworks.core.errors import InputError
from noiseworks.dev.contracts import app_of, contract_of, same, typed, words_of, written
from noiseworks.dev.fuzzing import Effort, fuzz
from noiseworks.kits.training.folder import METRICS_NAME
from safetensors.torch import load_file, save_file

GENERATED_VERBS = {"claim"}  # the claims' own tests run it


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Makes the files that the lines of a package's contract name, once a run."""

    @cache
    def make(package):
        folder = tmp_path_factory.mktemp("made")
        return folder, contract_of(package).files(folder)

    return make


@pytest.fixture
def desk(method, made, tmp_path):
    """A working folder, and the files that a contract's lines name."""
    return laid(tmp_path, *made(method.folder))


@pytest.fixture(scope="session")
def refusing_desk(made, tmp_path_factory):
    """Lays a desk for all lines of a package that must leave it as it is, once a run."""

    @cache
    def lay(package):
        return laid(tmp_path_factory.mktemp("refusing"), *made(package))

    return lay


def laid(place, folder, files):
    """Lay a working folder, and copies of the files that a contract's lines name."""
    (place / "work").mkdir()
    shutil.copytree(folder, place / "files")
    own = {name: Path(file) for name, file in files.items() if Path(file).is_relative_to(folder)}
    return place / "work", files | {
        name: place / "files" / file.relative_to(folder) for name, file in own.items()
    }


@pytest.fixture
def averages(monkeypatch):
    """Of each average that moves while a test runs, by identity: its weights that are not those of what is trained."""
    from noiseworks.kits.training import Average

    found, move = {}, Average.update

    def update(average, model):
        copies = average.decay(int(average.updates)) == 0
        move(average, model)
        if copies:
            return
        pairs = zip(average.model.parameters(), model.parameters(), strict=True)
        found[id(average)] = [own.clone() for own, other in pairs if not same(own, other)]

    monkeypatch.setattr(Average, "update", update)
    return found


def leaves(state):
    """Yield what mappings and lists hold, however deep."""
    if isinstance(state, Mapping | list | tuple):
        for value in state.values() if isinstance(state, Mapping) else state:
            yield from leaves(value)
    else:
        yield state


def test_every_verb_has_a_line_that_works(method, contract):
    verbs = {verb for verb in app_of(method.folder.name) if not verb.startswith("-")} - GENERATED_VERBS
    assert verbs == {line.split()[0] for line in contract.good}
    assert contract.bad


def test_line_that_works(method, good_line, desk):
    """Ends with status 0, prints valid JSON with --json, and leaves the files that it names and no others."""
    work, files = desk
    done = typed(app_of(method.folder.name), [*words_of(good_line, files), "--json"], work)
    assert done.returncode == 0, done.stderr
    if done.stdout:
        json.loads(done.stdout, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    patterns = contract_of(method.folder).good[good_line]
    left = written(work)
    assert all(fnmatch.filter(left, pattern) for pattern in patterns), sorted(left)
    roots = {pattern.split("/")[0] for pattern in patterns}
    assert not [name for name in left if not any(fnmatch.fnmatch(name.split("/")[0], root) for root in roots)]


def test_line_that_is_refused(method, bad_line, refusing_desk):
    """One line on stderr that names the mistake, exit status 2, nothing on stdout, nothing written."""
    work, files = refusing_desk(method.folder)
    line, part = bad_line
    before = written(work.parent)
    done = typed(app_of(method.folder.name), words_of(line, files), work)
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert part in done.stderr
    assert done.stdout == ""
    assert written(work.parent) == before


def test_host_is_attached_and_left_as_it_was(method, attached_host):
    contract_of(method.folder).attach[attached_host]()


def test_artifact_round_trips_and_a_damaged_one_is_refused(method, artifact_name, tmp_path):
    artifact = contract_of(method.folder).artifacts[artifact_name]
    artifact.save(tmp_path / "saved")
    assert same(artifact.load(tmp_path / "saved"), artifact.load(tmp_path / "saved"))
    for file in sorted((tmp_path / "saved").iterdir()):
        for damage in DAMAGES:
            shutil.rmtree(tmp_path / "damaged", ignore_errors=True)
            shutil.copytree(tmp_path / "saved", tmp_path / "damaged")
            if not damage(tmp_path / "damaged" / file.name):
                continue
            with pytest.raises(InputError) as refused:
                artifact.load(tmp_path / "damaged")
            assert "\n" not in str(refused.value)


def cut(file):
    """Keep half of a file."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return True


def gone(file):
    """Take a file away."""
    file.unlink()
    return True


def of_another_kind(file):
    """Put a list in the place of what a file held."""
    file.write_bytes(b"[]")
    return True


def renamed(file):
    """Give a tensor another name; files without tensors stay as they are."""
    tensors = load_file(file) if file.suffix == ".safetensors" else {}
    if not tensors:
        return False
    first = min(tensors)
    save_file({f"{name}.other" if name == first else name: value for name, value in tensors.items()}, file)
    return True


DAMAGES = (cut, gone, of_another_kind, renamed)


def test_resumed_training_equals_uninterrupted_training(method, trainer, tmp_path, averages):
    """Bit for bit, and in its metrics; what a run with an average of the weights gives is the average."""
    resume = contract_of(method.folder).resume[trainer]
    whole = resume.train(tmp_path / "whole", None)
    for apart in averages.values():
        assert apart, "the run is too short to tell its average from what is trained"
        assert any(same(own, leaf) for own in apart for leaf in leaves(whole)), "the average is lost"
    resume.train(tmp_path / "parts", resume.stop_after)
    assert same(resume.train(tmp_path / "parts", None), whole)
    assert figures(tmp_path / "parts") == figures(tmp_path / "whole")


def figures(folder):
    """Return the rows of a run's metrics, without what the clock says."""
    file = folder / METRICS_NAME
    rows = csv.DictReader(file.read_text().splitlines()) if file.exists() else ()
    return [{name: value for name, value in row.items() if "second" not in name} for row in rows]


def test_lines_with_one_thing_wrong_are_taken_well(method, contract, root, monkeypatch):
    """Refused in one line with nothing written, or accepted; `noiseworks-dev fuzz` types more of them.

    A path to nothing, to an empty folder or to a file of zeros is refused wherever a verb reads one.
    """
    monkeypatch.chdir(root)
    found = fuzz(method.folder.name, effort=Effort(calls=12, seconds=10), seed=1)
    assert found.bad == {}
