"""A folder of pictures that is killed at any step goes on to the same bytes."""

import numpy as np
import pytest
from noiseworks.core.errors import InputError
from noiseworks.kits.protection import Budget, projected_gradient
from noiseworks.kits.protection import running as folders
from noiseworks.kits.protection.engine import draw_normal, streams
from PIL import Image

BUDGET = Budget(8, 1, 6, start="uniform", seed=3)


class Killed(BaseException):
    """What no cleaning-up sees."""


def noisy(images, generators):
    return images - 0.5 + draw_normal(generators, images.shape[1:], images), images.flatten(1).sum(1)


def run(jobs, out, stop_at=None, error=KeyboardInterrupt, settings=None):
    done = []

    def protect(inner, mask, generators, state, observe):
        def watched(found):
            observe(found)
            done.append(found.step)
            if len(done) == stop_at:
                raise error

        keep = None if mask is None else 1 - mask
        return projected_gradient(
            inner, noisy, BUDGET, support=keep, generators=generators, state=state, observe=watched
        )

    folders.protect_files(jobs, out, settings or {"model": "none"}, protect, BUDGET, factor=4, side=16)
    return done


@pytest.fixture
def jobs(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for stem, size in (("one", (18, 25)), ("two", (21, 17)), ("three", (16, 16))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(
            tmp_path / "images" / f"{stem}.png"
        )
        mask = np.zeros(size, np.uint8)
        mask[3:12, 2:14] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / f"{stem}.png")
    return folders.jobs_of(tmp_path / "images", tmp_path / "masks")


@pytest.mark.parametrize("stop_at", [2, 6, 9, 15])
@pytest.mark.parametrize("error", [KeyboardInterrupt, Killed])
def test_a_folder_that_was_stopped_goes_on_to_the_same_bytes(jobs, tmp_path, monkeypatch, stop_at, error):
    monkeypatch.setattr(folders, "SAVE_EVERY", 0.0)
    whole = run(jobs, tmp_path / "whole")
    with pytest.raises(error):
        run(jobs, tmp_path / "part", stop_at, error)
    left = run(jobs, tmp_path / "part")
    assert len(whole) == 3 * BUDGET.steps
    assert len(left) == len(whole) - stop_at
    for job in jobs:
        name = f"{job.path.stem}.png"
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        change = folders.read_picture(tmp_path / "part" / name).pixels.astype(int) - job.picture.pixels
        assert 0 < np.abs(change).max() <= BUDGET.eps_255
        assert (change[~job.keep] == 0).all()
    with pytest.raises(InputError, match="was begun with model"):
        run(jobs, tmp_path / "part", settings={"model": "another"})
    assert run(jobs, tmp_path / "part") == []


def test_a_stop_by_hand_keeps_what_was_done_since_the_last_save(jobs, tmp_path):
    whole = run(jobs, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt, match="stopped at picture 2 of 3; the same command goes on"):
        run(jobs, tmp_path / "part", 9)
    assert len(run(jobs, tmp_path / "part")) == len(whole) - 9


def test_the_change_of_a_large_picture_is_enlarged(jobs):
    pixels = np.random.default_rng(1).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    job = folders.Job(jobs[0].path, folders.Picture(pixels))
    sides = []

    def protect(inner, mask, generators, state, observe):
        sides.append(tuple(inner.shape[-2:]))
        return projected_gradient(inner, noisy, BUDGET, generators=generators)

    picture, _ = folders.protect_one(job, protect, BUDGET, factor=4, side=32)
    assert sides == [(32, 28)]
    assert picture.pixels.shape == pixels.shape
    assert 0 < np.abs(picture.pixels.astype(int) - pixels).max() <= 8


def test_the_same_seed_gives_the_same_table_and_edits_hear_of_their_purifier():
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    protected = np.clip(originals + 8 * rng.choice([-1, 1], originals.shape), 0, 255).astype(np.uint8)
    heard = []

    def edit(images, purifier):
        heard.append(purifier)
        return (images + 0.1 * draw_normal(streams(BUDGET, 2), images.shape[1:], images)).clamp(0, 1)

    first, second = (
        folders.assess(["a", "b"], originals, protected, edit, ["jpeg-75", "crop-resize"]) for _ in range(2)
    )
    assert first.rows == second.rows
    assert first.table == second.table
    assert heard[:6] == ["none", "none", "jpeg-75", "jpeg-75", "crop-resize", "crop-resize"]
    assert [line["purifier"] for line in first.table] == ["none", "jpeg-75", "crop-resize", "worst case"]
    assert first.table[-1]["psnr"] >= max(line["psnr"] for line in first.table[:-1])
