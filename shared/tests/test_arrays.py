"""A user's array files: read without pickles, refused in one line when they are missing, damaged or something else."""

import numpy as np
import pytest
from noiseworks.core.arrays import read_array, read_arrays
from noiseworks.core.errors import InputError


def test_arrays_round_trip(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(3), y=np.ones(2))
    assert set(read_arrays(tmp_path / "a.npz")) == {"x", "y"}
    assert read_arrays(tmp_path / "a.npz", "x")["x"].tolist() == [0, 1, 2]
    np.save(tmp_path / "a.npy", np.arange(3))
    for on_disk in (False, True):
        assert read_array(tmp_path / "a.npy", on_disk=on_disk).tolist() == [0, 1, 2]


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "pickled", "single", "missing"])
def test_what_is_no_npz_file_is_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros(1000))
    whole = path.read_bytes()
    if damage == "pickled":
        np.savez(path, x=np.array([{}], dtype=object))
    elif damage == "single":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "text": b"hello", "cut": whole[:400]}[damage])
    with pytest.raises(InputError, match=r"a\.npz") as refused:
        read_arrays(path, "x")
    assert "\n" not in str(refused.value)


def test_an_array_that_is_not_there_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", y=np.zeros(1))
    with pytest.raises(InputError, match="lacks the arrays x; it has y"):
        read_arrays(tmp_path / "a.npz", "x")


@pytest.mark.parametrize("damage", ["empty", "cut", "pickled", "several", "missing"])
def test_what_is_no_npy_file_is_refused(tmp_path, damage):
    path = tmp_path / "a.npy"
    if damage == "pickled":
        np.save(path, np.array([{}], dtype=object))
    elif damage == "several":
        with path.open("wb") as file:
            np.savez(file, x=np.zeros(3))
    elif damage != "missing":
        np.save(path, np.zeros(100))
        path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"a\.npy"):
        read_array(path)
