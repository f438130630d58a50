"""Clips whose feet stand still, rooms whose distances are right, and cases that can be done."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from noiseworks.bench.testbeds.motion import FPS, KINDS, draw_cases, draw_clips
from noiseworks.core.errors import InputError
from noiseworks.kits.motion import ProcBody, contact_score, film_motion, penetration
from noiseworks.kits.motion.scenes import floor_distance, length_of

BODY = ProcBody()


@pytest.fixture(scope="module")
def clips():
    return draw_clips(3, 120)


@pytest.fixture(scope="module")
def cases():
    return draw_cases(5, 12, kinds=("walk", "sit", "lie"))


def test_a_clip_depends_on_seed_and_index_alone(clips):
    again = draw_clips(3, 5, start=40)
    assert torch.equal(again.motion, clips.motion[40:45])
    assert not torch.equal(draw_clips(4, 5, start=40).motion, again.motion)
    assert set(clips.kinds.tolist()) == set(range(len(KINDS)))


def test_feet_stand_still_on_the_floor(clips):
    joints, markers = BODY(clips.motion)
    upright = clips.kinds < KINDS.index("lie")
    height = clips.pelvis[:, None, None]
    raised = torch.cat((joints[..., :2], joints[..., 2:] + height[..., None]), -1)[upright]
    assert contact_score(raised, FPS).min() >= 0.97
    lowest = (markers[upright][..., :6, 2] + height[upright]).amin(-1)
    assert lowest.abs().max() < 1e-4
    feet = raised[:, :, (10, 11)]
    assert ((feet[:, 1:] - feet[:, :-1]).norm(dim=-1).amin(-1) * FPS).max() < 1e-3


def test_clips_begin_in_their_own_frame_and_never_jump(clips):
    joints, _ = BODY(clips.motion)
    assert joints[:, 0, 0].abs().max() < 1e-5
    across = joints[:, 0, 2] - joints[:, 0, 1]
    assert across[:, 1].abs().max() < 1e-5
    assert (across[:, 0] > 0).all()
    assert (clips.motion[:, 1:] - clips.motion[:, :-1]).abs().max() < 1.0
    walks = clips.kinds == KINDS.index("walk")
    assert 2.0 < joints[walks, -1, 0, :2].norm(dim=-1).mean() < 5.0


def test_knees_bend_only_forwards(clips):
    assert clips.motion[..., 3 * 4].min() > -1e-4
    assert clips.motion[..., 3 * 4].max() > 1.0


def test_a_case_depends_on_seed_and_index_alone(cases):
    again = draw_cases(5, 3, start=6, kinds=("walk", "sit", "lie"))
    assert torch.equal(again.history, cases.history[6:9])
    assert torch.equal(again.scene.boxes, cases.scene.boxes[6:9])


def test_seats_are_where_recorded_clips_end(cases):
    for kind in ("sit", "lie"):
        some = cases.of(kind)
        joints, markers = BODY(some.reference)
        assert torch.allclose(joints[:, -1, 0], some.goals, atol=1e-5)
        assert some.scene.distance(markers).min() > -0.04
        # The seat is touched: something of the body is within 5 cm of it.
        assert (some.scene.furniture(markers[:, -1]).amin(-1) < 0.05).all()


def test_walks_keep_their_clearance(cases):
    walks = cases.of("walk")
    for index, way in enumerate(walks.waypoints):
        start = walks.history[index : index + 1, 0]
        begin = BODY(start)[0][0, 0, :2].double().numpy()
        path = np.concatenate((begin[None], way[:, :2]))
        assert 2.9 < length_of(path) < 6.6
        points = np.concatenate([np.linspace(a, b, 20) for a, b in pairwise(path)])
        assert floor_distance(walks.scene[index : index + 1], points).min() > 0.25
    assert (penetration(BODY(walks.history)[1], walks.scene)[0] == 0).all()


def test_the_hard_variant_brushes_along_furniture():
    found = []
    walks = draw_cases(2, 8, kinds=("walk",), clearance=0.0)
    for index, way in enumerate(walks.waypoints):
        begin = BODY(walks.history[index : index + 1, 0])[0][0, 0, :2].double().numpy()
        path = np.concatenate((begin[None], way[:, :2]))
        points = np.concatenate([np.linspace(a, b, 40) for a, b in pairwise(path)])
        found.append(floor_distance(walks.scene[index : index + 1], points).min())
    assert min(found) > -0.06
    assert np.mean(np.array(found) < 0.25) > 0.2


def test_bad_cases_are_refused():
    with pytest.raises(InputError, match="kind"):
        draw_cases(0, 1, kinds=("swim",))
    with pytest.raises(InputError, match="no room"):
        draw_cases(0, 1, kinds=("walk",), lengths=(50.0, 60.0))


def test_films_show_body_and_room(cases):
    some = cases.of("sit")
    joints = BODY(some.reference)[0][0, ::20].numpy()
    frames = film_motion(joints, some.scene[:1], some.goals[:1].numpy())
    assert len(frames) == 2
    assert frames[0].shape == frames[1].shape
    assert frames[0].shape[1] == 320
    assert (frames[0] != frames[1]).any()
    assert (frames[0] != film_motion(joints)[0][:1, :1]).any()
