"""Tracker and score against the devkit's numbers, geometry against brute force, rules against single cases."""

from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
from noiseworks.core.errors import InputError
from noiseworks.kits.driving import (
    Scenes,
    States,
    combine,
    read_scenes,
    rollout,
    score,
    score_plans,
    track,
    write_scenes,
)
from noiseworks.kits.driving.proposals import propose
from noiseworks.kits.driving.scenes import NO_LANE, PADDING, PEDESTRIAN, STATIC, VEHICLE, on_strips, project
from noiseworks.kits.driving.scoring import _smooth, find_areas, is_comfortable, is_off_road
from noiseworks.kits.driving.tracking import (
    STATES,
    STEP,
    _commands,
    curvature_profile,
    interpolate,
    speed_profile,
)
from noiseworks.kits.driving.vehicle import CENTRE, corners, ego_boxes, overlap

TIMES = 0.5 * np.arange(1, 9)
FINE = STEP * np.arange(STATES)


def along_x(x):
    return np.stack((x, 0 * x, 0 * x), axis=-1)


def steady(speed, poses=None):
    """States of a vehicle at constant speed along x."""
    poses = along_x(speed * FINE) if poses is None else poses
    return States(poses[None, None], np.full((1, 1, STATES), speed), np.zeros((1, 1, STATES)))


def scene(*objects, strips=((-50.0, 0.0, 0.0, 200.0, 0.0, 1.75, 0),), junction=None, limit=10.0):
    """One scene; objects are (kind, x, y, speed), lanes the last entry of each strip."""
    count = max(1, len(objects))
    tracks, kinds, speeds = np.zeros((1, count, 51, 3)), np.zeros((1, count), int), np.zeros((1, count, 51))
    sizes = np.ones((1, count, 2))
    for index, (kind, x, y, speed) in enumerate(objects):
        tracks[0, index, :, 0], tracks[0, index, :, 1] = x + speed * STEP * np.arange(51), y
        kinds[0, index], speeds[0, index] = kind, speed
        sizes[0, index] = (4.6, 1.9) if kind == VEHICLE else (0.5, 0.5)
    strips = np.array(strips, float)
    route = np.stack((np.arange(0, 100, 0.5), np.zeros(200)), axis=-1)[None, None]
    one = np.zeros(1)
    return Scenes(
        strips[None, :, :6],
        strips[None, :, 6].astype(int),
        np.zeros((1, len(strips)), bool) if junction is None else np.array([junction]),
        route,
        np.ones((1, 1), bool),
        np.ones((1, 1), int),
        np.zeros(1, int),
        tracks,
        sizes,
        kinds,
        speeds,
        one + 5.0,
        one,
        one + limit,
    )


# --- The tracker ---


def test_a_plan_at_the_vehicles_own_speed_is_followed_exactly():
    states = rollout(along_x(5 * TIMES), 5.0, 0.0)
    assert states.poses[-1] == pytest.approx([20, 0, 0], abs=1e-9)
    assert np.abs(states.acceleration).max() < 1e-9


def test_speeding_up_follows_the_devkits_numbers():
    states = rollout(along_x(5 * TIMES), 4.0, 0.0)
    assert states.acceleration[1:3] == pytest.approx([10 / 33, 0.4958678], abs=1e-7)
    assert (states.speed[1], states.speed[-1]) == pytest.approx((4.0303030, 4.9923893), abs=1e-7)
    assert states.poses[-1, 0] == pytest.approx(18.9058922, abs=1e-7)


def test_braking_follows_the_devkits_numbers():
    reference = np.where(FINE < 2.5, 5 * FINE - FINE**2, 6.25)
    states = track(along_x(reference), 5.0, 0.0)
    found = states.poses[-1, 0], states.speed[-1], states.acceleration.min()
    assert found == pytest.approx((7.7011367, 0.1123273, -2.1569488), abs=1e-7)
    assert is_comfortable(states)


def test_the_profiles_minimise_what_they_say():
    rng = np.random.default_rng(0)
    plans = along_x(6 * TIMES) + rng.normal(size=(3, 8, 3)) * (1, 0.5, 0.1)
    poses, count = interpolate(plans), STATES - 1
    speed = speed_profile(poses)
    matrix = np.concatenate((np.ones((count, 1)), STEP * np.tri(count, count - 1, -1)), axis=1)
    for row, v, found in zip(poses, speed, curvature_profile(poses, speed), strict=True):
        turns = np.diff(row[:, 2])
        left = np.concatenate((STEP * v[:, None] * matrix, np.diag([1e-5, *[0.1] * (count - 1)])))
        right = np.concatenate((turns, np.zeros(count)))
        assert found == pytest.approx(matrix @ np.linalg.lstsq(left, right)[0], abs=1e-9)
        ahead = np.stack((np.cos(row[:-1, 2]), np.sin(row[:-1, 2])), axis=-1)
        moves = (STEP * ahead[:, :, None] * matrix[:, None]).reshape(-1, count)
        penalty = -np.eye(count)[1:-1] * 1e-2
        penalty[-1, -1] = 1e-2
        goal = np.concatenate((np.diff(row[:, :2], axis=0).ravel(), np.zeros(count - 2)))
        assert v == pytest.approx(
            matrix @ np.linalg.lstsq(np.concatenate((moves, penalty)), goal)[0], abs=1e-8
        )


def test_the_steering_is_that_of_ten_steps_of_matrices():
    """One rate u for a second: -(B' Q B + R)^-1 B' Q (A x + g), the steps rolled out one by one."""
    rng = np.random.default_rng(6)
    pose, place = rng.normal(size=(2, 3, 7)) * [[1.0], [1.0], [4.0]]
    v, steering = rng.uniform(0, 9, 7), rng.uniform(-0.3, 0.3, 7)
    speeds, curvatures = rng.uniform(0, 9, (40, 7)), rng.uniform(-0.1, 0.1, (40, 7))
    v[0], speeds[:, 0] = 0.1, 0.1  # this one stops
    for k in (0, 36):
        command, rate = _commands(k, pose, v, steering, place, speeds, curvatures)
        for n in range(7):
            accelerate = 10 * (speeds[min(k + 10, 39), n] - v[n]) / 11
            aside = np.array((-np.sin(place[2, n]), np.cos(place[2, n]))) @ (pose - place)[:2, n]
            x = np.array((aside, (pose - place)[2, n], steering[n]))
            x[1] = np.angle(np.exp(1j * x[1]))
            total = np.zeros(3)
            for step in range(10):
                ahead = 0.1 * (v[n] + 0.1 * step * accelerate)
                matrix = np.eye(3) + ahead * np.array([[0, 1, 0], [0, 0, 1 / 3.089], [0, 0, 0]])
                x = matrix @ x - np.array((0, ahead * curvatures[min(k + step, 39), n], 0))
                total = matrix @ total + np.array((0, 0, 0.1))
            x[1] = np.angle(np.exp(1j * x[1]))
            weights = np.diag((1.0, 10.0, 0.0))
            wanted = -(total @ weights @ x) / (total @ weights @ total + 1)
            if n:
                assert (command[n], rate[n]) == pytest.approx((accelerate, wanted))
        assert (command[0], rate[0]) == (0.0, 0.0)


def test_headings_take_the_short_way_between_poses():
    plan = along_x(5 * TIMES)
    plan[0, 2], plan[1:, 2] = 3.1, -3.1
    between = interpolate(plan)[5:11, 2]
    assert np.diff(between) == pytest.approx([(2 * np.pi - 6.2) / 5] * 5)


@pytest.mark.parametrize("plans", [np.zeros((7, 3)), np.full((8, 3), np.nan)])
def test_plans_of_another_shape_or_not_finite_are_refused(plans):
    with pytest.raises(InputError, match="plans"):
        rollout(plans, 5.0, 0.0)


# --- Geometry ---


def test_points_on_strips_are_those_between_their_edges():
    rng = np.random.default_rng(1)
    strips = np.array([[1.0, -2.0, 0.7, 12.0, curve, 1.75] for curve in (0.0, 1 / 9, -1 / 20)])
    for strip in strips:
        s, d = rng.uniform(-3, 15, 400), rng.uniform(-3, 3, 400)
        clear = (np.abs(s) > 1e-3) & (np.abs(s - 12) > 1e-3) & (np.abs(np.abs(d) - 1.75) > 1e-3)
        s, d = s[clear], d[clear]
        turned = 0.7 + strip[4] * s
        if strip[4]:
            x = 1 + (np.sin(turned) - np.sin(0.7)) / strip[4]
            y = -2 - (np.cos(turned) - np.cos(0.7)) / strip[4]
        else:
            x, y = 1 + s * np.cos(0.7), -2 + s * np.sin(0.7)
        points = np.stack((x - d * np.sin(turned), y + d * np.cos(turned)), axis=-1)
        inside = (s > 0) & (s < 12) & (np.abs(d) < 1.75)
        assert (on_strips(strip[None, None], points[None])[0, 0] == inside).all()


def test_boxes_overlap_where_a_fine_grid_of_points_does():
    rng = np.random.default_rng(2)
    one = np.stack(
        [*rng.uniform(-3, 3, (2, 300)), rng.uniform(-3, 3, 300), *rng.uniform(0.3, 3, (2, 300))], -1
    )
    other = np.roll(one, 1, axis=0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 41)] * 2), axis=-1).reshape(-1, 2)

    def shrunk(a, b, size):
        """Whether points of box a, scaled by `size`, lie in box b, scaled likewise."""
        cos, sin = np.cos(a[2]), np.sin(a[2])
        x, y = grid[:, 0] * a[3] * size, grid[:, 1] * a[4] * size
        dx, dy = a[0] + x * cos - y * sin - b[0], a[1] + x * sin + y * cos - b[1]
        c, s = np.cos(b[2]), np.sin(b[2])
        inside = (np.abs(dx * c + dy * s) <= b[3] * size) & (np.abs(dy * c - dx * s) <= b[4] * size)
        return bool(inside.any())

    for a, b, found in zip(one, other, overlap(one, other), strict=True):
        if shrunk(a, b, 1.0):
            assert found
        if not shrunk(a, b, 1.15):  # a point of the grid in both, were they a little larger
            assert not found


def test_the_place_on_a_line_is_the_nearest_of_many():
    rng = np.random.default_rng(3)
    x = np.arange(0, 30, 0.5)
    line = np.stack((x, 4 * np.sin(x / 6)), axis=-1)
    line = np.concatenate((line, np.repeat(line[-1:], 5, axis=0)))
    points = rng.uniform((0, -6), (28, 6), (60, 2))
    along, aside = project(line[None], points[None])
    fine = np.stack(
        [np.interp(np.linspace(0, len(x) - 1, 30_000), np.arange(len(x)), c) for c in line[:60].T], -1
    )
    length = np.concatenate(([0], np.cumsum(np.linalg.norm(np.diff(fine, axis=0), axis=-1))))
    gaps = np.linalg.norm(points[:, None] - fine, axis=-1)
    assert np.abs(aside[0]) == pytest.approx(gaps.min(axis=1), abs=1e-3)
    assert along[0] == pytest.approx(length[gaps.argmin(axis=1)], abs=0.05)
    assert (aside[0] > 0)[gaps.min(1) > 0.1].tolist() == (points[:, 1] > 4 * np.sin(points[:, 0] / 6))[
        gaps.min(1) > 0.1
    ].tolist()


def test_corners_of_the_ego():
    front_left, rear_left, rear_right, front_right = corners(ego_boxes(np.array([1.0, 2.0, np.pi / 2])))
    assert front_left == pytest.approx([1 - 2.297 / 2, 2 + 4.049])
    assert rear_right == pytest.approx([1 + 2.297 / 2, 2 - 1.127])
    assert (rear_left[0], front_right[1]) == pytest.approx((front_left[0], front_left[1]))


# --- The score ---


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ((1, 1, 1, 0.8, 1), 0.916667),
        ((1, 1, 0, 1, 1), 0.583333),
        ((1, 1, 1, 0.9, 0), 0.791667),
        ((0.5, 1, 1, 1, 1), 0.5),
        ((1, 0, 1, 1, 1), 0.0),
    ],
)
def test_the_score_of_its_terms(terms, expected):
    assert combine(*terms) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("acceleration", "fine"), [(2.39, True), (2.40, False), (-4.04, True), (-4.06, False)]
)
def test_accelerations_must_lie_strictly_within_the_bounds(acceleration, fine):
    values = np.full(STATES, acceleration)
    assert is_comfortable(States(along_x(5 * FINE), 5 + 0 * FINE, values)) == fine


def test_a_turn_that_begins_at_once_is_uncomfortable():
    poses = along_x(5 * FINE)
    poses[:, 2] = 0.9 * np.maximum(
        FINE - 2, 0
    )  # its yaw rate is within bounds, its yaw acceleration 3.86 is not
    assert not is_comfortable(States(poses, 5 + 0 * FINE, 0 * FINE))
    poses[:, 2] = 0.9 * FINE
    assert is_comfortable(States(poses, 5 + 0 * FINE, 0 * FINE))


def test_filters_have_the_devkits_peaks():
    step = (np.arange(STATES) >= 20).astype(np.float64)
    eased = _smooth(step, 8, 2)
    assert np.abs(_smooth(eased, STATES, 2, 1)).max() == pytest.approx(0.4523084, abs=1e-7)
    assert np.abs(_smooth(eased, 15, 2, 1)).max() == pytest.approx(1.0044643, abs=1e-7)
    heading = 0.9 * np.maximum(FINE - 2, 0)
    assert np.abs(_smooth(heading, 5, 2, 1)).max() == pytest.approx(0.9)
    assert np.abs(_smooth(heading, 5, 3, 2)).max() == pytest.approx(3.857143, abs=1e-6)


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ([(VEHICLE, -12.0, 0.0, 9.0)], 1.0),  # from behind
        ([(VEHICLE, 15.0, 0.0, 0.0)], 0.0),  # parked
        ([(STATIC, 15.0, 0.0, 0.0)], 0.5),
        ([(VEHICLE, 8.0, 0.0, 1.0)], 0.0),  # with the bumper, into one that moves
        ([(PEDESTRIAN, 15.0, 0.5, 0.1)], 0.0),
        ([(VEHICLE, 15.0, 4.0, 0.0)], 1.0),  # beside the way
        ([(STATIC, 15.0, 0.0, 0.0), (VEHICLE, 18.0, 0.0, 0.0)], 0.0),
    ],
)
def test_whose_fault_a_collision_is(objects, expected):
    assert score(steady(5.0), scene(*objects)).no_collision == pytest.approx(expected)


def test_one_at_the_side_is_the_egos_fault_only_when_it_is_between_lanes():
    poses = along_x(5 * FINE)
    beside = [(VEHICLE, 0.5, 2.05, 5.0)]
    lanes = ((-50.0, 0.0, 0.0, 200.0, 0.0, 1.75, 0), (-50.0, 3.5, 0.0, 200.0, 0.0, 1.75, 1))
    assert score(steady(5.0, poses), scene(*beside, strips=lanes)).no_collision == 1.0
    poses[:, 1] = 0.9
    found = score(steady(5.0, poses), scene((VEHICLE, 0.5, 2.95, 5.0), strips=lanes))
    assert (found.no_collision.item(), found.drivable_area.item()) == (0.0, 1.0)


def test_an_ego_that_stands_is_never_at_fault():
    states = steady(0.0, along_x(0 * FINE))
    assert score(states, scene((VEHICLE, 15.0, 0.0, -5.0))).no_collision == 1.0


def test_a_corner_off_the_road_ends_the_score():
    poses = along_x(5 * FINE)
    poses[-1, 1] = 0.7
    found = score(steady(5.0, poses), scene())
    assert (found.drivable_area.item(), found.score.item(), found.progress.item()) == (0.0, 0.0, 0.0)


def test_what_is_ahead_within_a_second_counts_and_what_is_beside_does_not():
    assert score(steady(5.0), scene((VEHICLE, 30.0, 0.0, 0.0))).time_to_collision == 0.0
    assert score(steady(5.0), scene((VEHICLE, 35.0, 0.0, 0.0))).time_to_collision == 1.0
    assert score(steady(5.0), scene((VEHICLE, 5.0, 4.0, 5.0))).time_to_collision == 1.0


def test_one_that_comes_from_behind_counts_as_in_the_devkit():
    """The ego is moved on for the contact, not for the direction, so that the other one is ahead of it by then."""
    assert score(steady(5.0), scene((VEHICLE, -12.0, 0.0, 7.0))).time_to_collision == 0.0


def test_progress_is_relative_to_the_best_and_free_where_nobody_gets_far():
    plans = np.stack([along_x(speed * TIMES) for speed in (5.0, 2.5)])[None]
    found = score_plans(plans, scene())
    assert found.progress[0, 0] == 1.0
    assert found.progress[0, 1] == pytest.approx(found.raw_progress[0, 1] / found.raw_progress[0, 0])
    slow = score_plans(plans[:, 1:], scene(), np.array([40.0]))
    assert slow.progress[0, 0] == pytest.approx(slow.raw_progress[0, 0] / 40)
    standing = States(np.zeros((1, 1, STATES, 3)), np.zeros((1, 1, STATES)), np.zeros((1, 1, STATES)))
    assert score(standing, scene()).progress == 1.0


def test_progress_is_of_the_centre_along_the_route():
    poses = along_x(5 * FINE)
    assert score(steady(5.0, poses), scene()).raw_progress == pytest.approx(20.0)
    poses[-1, 2] = np.pi / 2  # the centre is then no longer ahead of the rear axle
    wide = scene(strips=((-50.0, 0.0, 0.0, 200.0, 0.0, 9.0, 0),))
    assert score(steady(5.0, poses), wide).raw_progress == pytest.approx(20.0 - CENTRE)


def test_more_objects_never_help():
    rng = np.random.default_rng(5)
    objects = [
        (VEHICLE, float(x), float(y), float(v)) for x, y, v in rng.uniform((5, -3, -3), (25, 3, 6), (8, 3))
    ]
    worth = [score(steady(5.0), scene(*objects[:count])) for count in range(9)]
    for fewer, more in pairwise(worth):
        assert (more.no_collision <= fewer.no_collision).all()
        assert (more.time_to_collision <= fewer.time_to_collision).all()


def test_scenes_that_cannot_be_scored_are_refused():
    bare = scene()
    bare.lanes[:] = PADDING
    with pytest.raises(InputError, match="no drivable area"):
        score_plans(np.zeros((1, 1, 8, 3)), bare)
    with pytest.raises(InputError, match="4 seconds"):
        score(States(np.zeros((1, 1, 9, 3)), np.zeros((1, 1, 9)), np.zeros((1, 1, 9))), scene())


def test_scenes_come_back_from_files_and_bad_ones_are_refused(tmp_path):
    whole, plans = scene((VEHICLE, 15.0, 0.0, 2.0)), np.ones((1, 8, 3))
    write_scenes(tmp_path / "one.npz", whole, {"plans": plans})
    again, others = read_scenes(tmp_path / "one.npz")
    assert all(
        np.array_equal(getattr(again, field.name), getattr(whole, field.name)) for field in fields(Scenes)
    )
    assert np.array_equal(others["plans"], plans)
    (tmp_path / "text.npz").write_text("no scenes")
    np.savez(tmp_path / "less.npz", speed=np.zeros(1))
    write_scenes(tmp_path / "short.npz", whole, {"plans": np.ones((2, 8, 3))})
    whole.lanes[:] = PADDING
    write_scenes(tmp_path / "bare.npz", whole)
    for name, words in (
        ("text", "holds no scenes"),
        ("less", "lacks strips"),
        ("short", "1 scenes, but plans has 2 rows"),
        ("bare", "scene 0 has no drivable area"),
    ):
        with pytest.raises(InputError, match=words):
            read_scenes(tmp_path / f"{name}.npz")


# --- Speed does not change what is found ---


def test_areas_agree_with_each_strip_alone():
    strips = (
        (-50.0, 0.0, 0.0, 200.0, 0.0, 1.75, 0),
        (-50.0, 3.5, 0.0, 90.0, 0.0, 1.75, 1),
        (40.0, 3.5, 0.0, 60.0, 0.02, 1.75, 1),
        (20.0, 0.0, 0.5, 30.0, 0.0, 4.0, NO_LANE),
        (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, PADDING),
    )
    one = scene(strips=strips, junction=[False, False, False, True, False])
    rng = np.random.default_rng(0)
    poses = rng.uniform((-20, -4, -1), (60, 8, 1), (1, 7, STATES, 3))
    off_road = is_off_road(poses, one)
    flat = poses.reshape(-1, 3)
    areas = find_areas(flat, np.zeros(len(flat), int), one)
    assert np.array_equal(areas.off_road, off_road.ravel())
    for at, pose in enumerate(flat):
        here = np.concatenate((corners(ego_boxes(pose)), pose[None, :2]))
        on = on_strips(one.strips, here[None])[0, :4]  # without the padding
        lanes = [on[0, :4], on[1, :4] | on[2, :4]]
        assert areas.off_road[at] == (not on[:, :4].any(axis=0).all())
        assert areas.multiple_lanes[at] == (
            sum(lane.any() for lane in lanes) > 1 and not any(lane.all() for lane in lanes)
        )
        assert areas.in_junction[at] == on[3, 4]
    assert 0 < areas.off_road.mean() < 1
    assert 0 < areas.multiple_lanes.mean() < 1


def test_objects_off_the_route_leave_proposals_as_they_are():
    ahead = (VEHICLE, 18.0, 0.4, 2.0)
    away = [(VEHICLE, 20.0, 9.0, 1.0), (PEDESTRIAN, -30.0, 0.0, 0.0), (STATIC, 12.0, -4.0, 0.0)]
    alone, crowded = scene(ahead), scene(*away, ahead)
    made = propose(alone, alone.route)
    assert np.array_equal(made, propose(crowded, crowded.route))
    free = propose(scene(away[0]), alone.route)
    assert made[..., -1, 0].max() < free[..., -1, 0].max()
