"""Scenes that depend on their number alone, an expert that drives well, and what planners see."""

import numpy as np
import pytest
from noiseworks.bench.testbeds.drive import (
    CHANNELS,
    TEMPLATES,
    folders,
    label,
    observe,
    read_folder,
    write_folder,
)
from noiseworks.core.errors import InputError
from noiseworks.kits.driving import draw_scene, read_scenes, score_plans, write_scenes
from noiseworks.kits.driving.scenes import NOTHING


@pytest.fixture(scope="module")
def labelled():
    return label(3, 96)


def test_a_scene_depends_on_seed_and_index_alone(labelled):
    again = label(3, 7, start=40)
    for name in ("plans", "reference", "scores", "templates"):
        assert getattr(again, name) == pytest.approx(getattr(labelled, name)[40:47], abs=1e-9)
    assert (again.scenes.tracks == labelled.scenes.tracks[40:47]).all()
    assert not (label(4, 7, start=40).plans == again.plans).all()


def test_the_expert_drives_well_and_chooses_among_routes(labelled):
    assert labelled.scores.mean() >= 0.95
    assert labelled.scores.min() >= 0.8
    labelled.scenes.check()
    several = labelled.scenes.admissible.sum(axis=1) > 1
    assert 0.4 < several.mean() < 0.9
    turns = np.unique(labelled.scenes.command[several])
    assert set(turns) == {0, 1, 2}
    assert set(labelled.templates) == set(range(len(TEMPLATES)))


def test_the_experts_score_is_that_of_its_plan(labelled):
    found = score_plans(labelled.plans[:, None], labelled.scenes, labelled.reference)
    assert found.score[:, 0] == pytest.approx(labelled.scores)


def test_traffic_keeps_to_its_lanes_and_apart(labelled):
    scenes = labelled.scenes
    real = scenes.kinds[:, :12] != NOTHING
    moved = np.linalg.norm(np.diff(scenes.tracks[:, :12, :, :2], axis=2), axis=-1)
    assert moved[real].max() < 0.1 * 17
    assert (np.abs(moved - 0.1 * scenes.track_speeds[:, :12, :-1])[real] < 0.12).mean() > 0.98
    assert real.sum(axis=1).mean() > 2


def test_views_show_road_routes_and_what_moves(labelled):
    view, status = observe(labelled.scenes)
    assert view.shape == (96, len(CHANNELS), 64, 64)
    assert view.dtype == np.int8
    assert (view[:, 0, 32:37, 32] == 127).all()  # the ego stands on the road
    assert (view[:, 1, 33, 32] == 127).all()  # and its routes begin there
    blocked = labelled.templates == TEMPLATES.index("blocked")
    assert (view[blocked, 2, 50:64, 31:33].reshape(blocked.sum(), -1) == 127).any(axis=1).all()
    assert status[:, 3].tolist() == [1.0] * 96
    told = observe(labelled.scenes[:8], commanded=True)[1]
    assert told[:, :4].argmax(axis=1).tolist() == labelled.scenes.command[:8].tolist()


def test_pictures_show_the_plan(labelled):
    plain = draw_scene(labelled.scenes, 0, labelled.plans[:1])
    assert plain.shape == (240, 240, 3)
    assert (plain != draw_scene(labelled.scenes, 0, labelled.plans[:1] * 0)).any()


def test_folders_go_on_where_they_were_stopped(labelled, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "SHARD", 8)
    assert write_folder(tmp_path, 3, 20) == 20
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    gone = tmp_path / "scenes_3_000008_8.npz"
    gone.unlink()
    assert write_folder(tmp_path, 3, 20) == 8
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(InputError, match="is of another count than 22"):
        write_folder(tmp_path, 3, 22)  # its last four scenes would come twice
    again = read_folder(tmp_path)
    assert again.plans == pytest.approx(labelled.plans[:20], abs=1e-9)
    # Scenes of another origin have plans alone; what is possible in them is found anew.
    scenes, others = read_scenes(gone)
    own = tmp_path / "own"
    own.mkdir()
    with pytest.raises(InputError, match="has no"):
        read_folder(own)
    write_scenes(own / "mine.npz", scenes, {"plans": others["plans"]})
    mine = read_folder(own)
    there = scenes.admissible  # routes that could not be driven well are not looked at again
    assert mine.references[there] == pytest.approx(others["references"][there])
    assert mine.scores == pytest.approx(others["scores"])
    write_scenes(own / "mine.npz", scenes)
    with pytest.raises(InputError, match=r"needs plans \[8, 8, 3\]"):
        read_folder(own)
