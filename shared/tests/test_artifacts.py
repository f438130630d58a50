"""Atomic files and artifacts: whole or absent after a kill, and refused when damaged or foreign."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from noiseworks.core.artifacts import (
    atomic_directory,
    atomic_write,
    check_writable,
    load_artifact,
    save_artifact,
)
from noiseworks.core.errors import ArtifactError, InputError

# Writes `new` over `old` and dies without cleaning up at the moment that the argument names.
KILLED_WRITER = """
import os, sys
from pathlib import Path
from noiseworks.core import artifacts

target, moment = Path(sys.argv[1]), sys.argv[2]
if moment == "before rename":
    artifacts.os.replace = artifacts.os.rename = lambda *_: os._exit(9)
if target.suffix == ".txt":
    if moment == "while writing":
        artifacts.os.fsync = lambda *_: os._exit(9)
    artifacts.atomic_write(target, "new")
else:
    with artifacts.atomic_directory(target) as folder:
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


def test_an_error_inside_the_block_keeps_the_old_directory(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "part").write_text("old")

    def write_and_fail():
        with atomic_directory(target) as folder:
            (folder / "part").write_text("new")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_and_fail()
    assert (target / "part").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_directory_is_replaced_whole(tmp_path):
    target = tmp_path / "folder"
    for names in (("a", "b"), ("c",)):
        with atomic_directory(target) as folder:
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
