"""Atomic files and artifacts: whole or absent after a kill, and refused when damaged or foreign."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from noiseworks.core import artifacts
from noiseworks.core.artifacts import (
    HOST_FOLDER,
    FolderKind,
    atomic_directory,
    atomic_write,
    check_folder,
    check_writable,
    load_artifact,
    rebuilding,
    save_artifact,
)
from noiseworks.core.errors import ArtifactError, InputError, first_line, last_line

PARTS = FolderKind(None, ("part", "a", "b", "c"))

# Writes `new` over `old` and dies without cleaning up at the moment that the argument names.
KILLED_WRITER = """
import os, sys
from pathlib import Path
from noiseworks.core import artifacts

target, moment = Path(sys.argv[1]), sys.argv[2]
if moment == "before rename":
    artifacts.os.replace = artifacts.os.rename = artifacts.exchange = lambda *_: os._exit(9)
if target.suffix == ".txt":
    if moment == "while writing":
        artifacts.os.fsync = lambda *_: os._exit(9)
    artifacts.atomic_write(target, "new")
else:
    with artifacts.atomic_directory(target, artifacts.FolderKind(None, ("part",))) as folder:
        (folder / "part").write_text("new")
        if moment == "while writing":
            os._exit(9)
"""


@pytest.mark.parametrize("moment", ["while writing", "before rename"])
@pytest.mark.parametrize("name", ["value.txt", "folder"])
def test_a_kill_leaves_the_old_version(tmp_path, name, moment):
    target = tmp_path / name
    if name == "folder":
        target.mkdir()
        (target / "part").write_text("old")
    else:
        target.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(target), moment], check=False)
    assert done.returncode == 9
    assert (target / "part" if name == "folder" else target).read_text() == "old"


def test_a_write_replaces_text_and_bytes_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "deep" / "file"
    atomic_write(target, "först")
    assert target.read_text(encoding="utf-8") == "först"
    atomic_write(target, b"\x00\x01")
    assert target.read_bytes() == b"\x00\x01"
    assert [p.name for p in target.parent.iterdir()] == ["file"]


def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "file"
    atomic_write(target, "old")

    def full(*names):
        raise OSError("no space left")

    monkeypatch.setattr(artifacts.os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        atomic_write(target, "new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_error_inside_the_block_keeps_the_old_directory(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "part").write_text("old")

    def write_and_fail():
        with atomic_directory(target, PARTS) as folder:
            (folder / "part").write_text("new")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_and_fail()
    assert (target / "part").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_directory_is_replaced_whole(tmp_path):
    target = tmp_path / "folder"
    for names in (("a", "b"), ("c",)):
        with atomic_directory(target, PARTS) as folder:
            for name in names:
                (folder / name).write_text(name)
    assert [p.name for p in target.iterdir()] == ["c"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def saved(tmp_path: Path) -> Path:
    path = tmp_path / "artifact"
    save_artifact(path, "mask", {"ratio": 0.25}, {"scores": torch.arange(6.0).reshape(2, 3).T})
    return path


def test_artifacts_round_trip(tmp_path):
    config, tensors = load_artifact(saved(tmp_path), "mask")
    assert config == {"ratio": 0.25}
    assert torch.equal(tensors["scores"], torch.arange(6.0).reshape(2, 3).T)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["truncated", "garbage", "missing"])
def test_damaged_artifacts_are_refused(tmp_path, name, damage):
    path = saved(tmp_path)
    file = path / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:20] if damage == "truncated" else b"\xff" * 64)
    with pytest.raises(ArtifactError, match=r"corrupt or incomplete|holds no config\.json"):
        load_artifact(path, "mask")


def test_artifacts_of_another_kind_or_version_are_refused(tmp_path):
    path = saved(tmp_path)
    with pytest.raises(ArtifactError, match="of kind 'mask', expected 'policy'"):
        load_artifact(path, "policy")
    record = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(record | {"format_version": 99}))
    with pytest.raises(ArtifactError, match="format version 99"):
        load_artifact(path, "mask")


def test_a_missing_artifact_is_refused_with_its_path(tmp_path):
    with pytest.raises(ArtifactError, match=r"nowhere holds no config\.json"):
        load_artifact(tmp_path / "nowhere", "mask")


def test_writable_folders_are_told_from_files(tmp_path):
    assert check_writable(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="is a file"):
            check_writable(path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="no permission"):
        check_writable(tmp_path / "a")


REPLACING = """
import itertools, sys
import torch
from noiseworks.core.artifacts import save_artifact

print("ready", flush=True)
for count in itertools.count(1):
    save_artifact(sys.argv[1], "mask", {"count": count}, {"scores": torch.full((8,), float(count))})
"""


def test_a_kill_in_a_loop_of_replacements_always_leaves_a_whole_artifact(tmp_path):
    target = tmp_path / "artifact"
    save_artifact(target, "mask", {"count": 0}, {"scores": torch.zeros(8)})
    writer = subprocess.Popen([sys.executable, "-c", REPLACING, str(target)], stdout=subprocess.PIPE)
    try:
        writer.stdout.readline()
        end, seen = time.monotonic() + 1.0, set()
        while time.monotonic() < end:  # a kill at any moment leaves what a reader sees at that moment
            record = json.loads((target / "config.json").read_text())
            seen.add(record["count"])
    finally:
        writer.kill()
        writer.communicate()
    assert len(seen) > 3
    config, tensors = load_artifact(target, "mask")
    assert torch.equal(tensors["scores"], torch.full((8,), float(config["count"])))


def test_without_the_exchanging_call_three_renames_do_it(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts.ctypes, "CDLL", lambda *_, **__: object())
    path = saved(tmp_path)
    save_artifact(path, "mask", {"ratio": 0.5}, {})
    assert load_artifact(path, "mask")[0] == {"ratio": 0.5}
    assert [p.name for p in tmp_path.iterdir()] == ["artifact"]


def test_files_have_the_permissions_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        path = saved(tmp_path)
        atomic_write(tmp_path / "text", "x")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o750
    for file in (*path.iterdir(), tmp_path / "text"):
        assert file.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("foreign", ["notes.txt", "config.json/deep.txt", ".hidden", "empty/"])
def test_a_folder_with_anything_else_in_it_is_not_replaced(tmp_path, foreign):
    path = tmp_path / "artifact" if foreign.startswith("config") else saved(tmp_path)
    extra = path / foreign
    if foreign.endswith("/"):
        extra.mkdir()
    else:
        extra.parent.mkdir(parents=True, exist_ok=True)
        extra.write_text("mine")
    with pytest.raises(InputError, match="is not replaced: it holds"):
        save_artifact(path, "mask", {}, {})
    assert extra.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["artifact"]


def test_a_file_that_comes_during_the_work_survives(tmp_path):
    path = saved(tmp_path)

    def write():
        with atomic_directory(path, "mask") as folder:
            (folder / "config.json").write_text("{}")
            (path / "notes.txt").write_text("mine")

    with pytest.raises(InputError, match=r"it holds 'notes\.txt'"):
        write()
    assert (path / "notes.txt").read_text() == "mine"
    assert load_artifact(path, "mask")[0] == {"ratio": 0.25}


def test_a_folder_of_another_kind_is_not_replaced(tmp_path):
    path = saved(tmp_path)
    with pytest.raises(InputError, match="an artifact of kind 'mask', expected only policy"):
        check_folder(path, "policy")
    (path / "config.json").write_text("[1]")
    with pytest.raises(InputError, match=r"no config\.json that says 'mask'"):
        check_folder(path, "mask")


def test_an_empty_folder_and_a_link_to_one_are_filled(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    save_artifact(tmp_path / "link", "mask", {"ratio": 0.5}, {})
    assert (tmp_path / "link").is_symlink()
    assert load_artifact(tmp_path / "real", "mask")[0] == {"ratio": 0.5}


def test_a_linked_folder_inside_is_foreign(tmp_path):
    path = saved(tmp_path)
    (tmp_path / "photos").mkdir()
    (path / "unet").symlink_to(tmp_path / "photos")
    with pytest.raises(InputError, match="it holds 'unet'"):
        check_folder(path, HOST_FOLDER)


def test_names_that_are_no_folder_of_their_own_are_refused(tmp_path, monkeypatch):
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    for name in ("", ".", "..", "/", "a/..", tmp_path, tmp_path / "here" / "below", "../../here"):
        with pytest.raises(InputError, match=r"no name of its own|current folder or above it"):
            check_folder(name, "mask")
    for name in ("a\0b", "x" * 256, "missing/" + "ä" * 128, "/".join(["d" * 200] * 25)):
        with pytest.raises(InputError, match="choose another name"):
            check_writable(name)
    check_folder("x" * 255, "mask")


def test_a_source_is_neither_the_target_nor_inside_it(tmp_path):
    path = saved(tmp_path)
    (tmp_path / "link").symlink_to(path)
    for source in (path, path / "model.safetensors", tmp_path / "link"):
        with pytest.raises(InputError, match="would replace its source"):
            check_folder(path, "mask", sources=(None, "testbed:shapes", source))
    check_folder(path, "mask", sources=(None, "testbed:shapes", tmp_path))
    shutil.rmtree(path)


def test_json_that_is_nested_too_deeply_is_refused(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(ArtifactError, match="corrupt"):
        artifacts.read_json(tmp_path / "deep.json")


@pytest.mark.parametrize("content", [b"[1]", b"3", b"{", b"", b"\xff"])
def test_json_that_is_no_object_is_refused(tmp_path, content):
    path = saved(tmp_path) / "config.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"config\.json is no artifact of kind 'mask'"):
        load_artifact(path.parent, "mask")


def test_tensors_that_hold_nan_are_refused_by_name(tmp_path):
    bad = float("nan")
    path = tmp_path / "artifact"
    save_artifact(path, "mask", {}, {"scores": torch.tensor([-torch.inf, bad]), "r2": torch.tensor([bad])})
    with pytest.raises(ArtifactError, match=r"scores in .* holds NaN"):
        load_artifact(path, "mask", loose=("r2",))
    with pytest.raises(ArtifactError, match="holds NaN"):
        load_artifact(path, "mask", loose=("scores",))
    assert set(load_artifact(path, "mask", loose=("r2", "scores"))[1]) == {"r2", "scores"}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("sizes"), "no entry 'sizes'"),
        (RuntimeError("Error(s) in loading:\n\tsize mismatch for w.\n"), "size mismatch for w."),
        (TypeError(), "TypeError"),
        (InputError("steps must be at least 1"), "steps must be at least 1"),
    ],
)
def test_what_an_artifact_cannot_be_rebuilt_from_is_one_sentence(error, reason):
    with pytest.raises(ArtifactError) as found, rebuilding("folder", "whole policy"):
        raise error
    assert str(found.value) == f"folder holds no whole policy: {reason}"


def test_a_stop_by_hand_passes_through_rebuilding():
    with pytest.raises(KeyboardInterrupt), rebuilding("folder", "whole policy"):
        raise KeyboardInterrupt


def test_lines_of_an_error_that_says_nothing_are_its_name():
    assert first_line(OSError("one\ntwo")) == "one"
    assert last_line(OSError("one\ntwo")) == "two"
    assert first_line(ValueError()) == last_line(ValueError("  \n")) == "ValueError"
