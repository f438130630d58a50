"""Pictures of the table: everything can be read off them again, and they are the same on every machine."""

import hashlib

import numpy as np
import pytest
from noiseworks.bench.testbeds.tabletop import (
    TabletopBatch,
    film,
    read_gripper,
    render,
    render_depth,
    text_embeddings,
)
from noiseworks.bench.testbeds.tabletop import rendering as draw
from noiseworks.bench.testbeds.tabletop import simulation as sim
from noiseworks.core.errors import InputError


def states(n, seed=0):
    env = TabletopBatch(n)
    env.reset(np.arange(n), np.arange(n) % 12, np.arange(n) + seed)
    out = env.state()
    out[:, :2] = (0.9, -0.2)  # the gripper out of the way
    return out


def grid(size):
    """Table coordinates of pixel centres, x and y of [size, size]."""
    axis = (np.arange(size) + 0.5) * 2 / size - 1
    return np.broadcast_to(axis, (size, size)), np.broadcast_to(-axis[:, None], (size, size))


def share_of(image, color):
    """How much of each pixel is a disc's colour on the table, by projection on their difference."""
    way = color - draw.TABLE
    return ((image.astype(float) - draw.TABLE) @ way / (way @ way)).clip(0, 1)


@pytest.mark.parametrize("size", draw.SIZES)
def test_disc_positions_and_sizes_can_be_read_off(size):
    scenes = states(24)
    # Discs alone on an empty part of the table.
    scenes[:, 7:13] = np.random.default_rng(0).uniform(-0.1, 0.1, (24, 6))
    scenes[:, [7, 9, 11]] += (-0.4, 0.0, 0.4)
    x, y = grid(size)
    images = render(scenes, size)
    for disc, color in enumerate(draw.DISC_COLORS):
        for scene, image in zip(scenes, images, strict=True):
            centre = scene[7 + 2 * disc : 9 + 2 * disc]
            near = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 0.14**2
            cover = share_of(image, color) * near
            found = np.array([(cover * x).sum(), (cover * y).sum()]) / cover.sum()
            assert np.abs(found - centre).max() < 0.1 * 2 / size + 0.002
            area = cover.sum() * (2 / size) ** 2
            assert area == pytest.approx(np.pi * sim.DISC_RADIUS**2, rel=0.12)


def test_the_handle_and_the_press_can_be_read_off():
    scenes = states(8)
    scenes[:, 17] = sim.HANDLE_X + np.linspace(0, sim.DRAWER_LENGTH, 8)
    scenes[:, 20] = np.arange(8) % 4 / 3
    images = render(scenes, 64).astype(float)
    x, y = grid(64)
    for scene, image in zip(scenes, images, strict=True):
        dark = (np.abs(image - draw.HANDLE_COLOR).sum(-1) < 30) & (y < -0.7) & (x < 0)
        assert np.abs(x[dark].mean() - scene[17]) < 0.02
        middle = np.hypot(x - scene[18], y - scene[19]) < 0.03
        expected = draw.BUTTON_COLOR + scene[20] * (draw.PRESSED_COLOR - draw.BUTTON_COLOR)
        assert np.abs(image[middle] - expected).max() <= 1


def test_an_open_gripper_is_a_ring_and_a_closed_one_a_disc():
    scenes = states(2)
    scenes[:, :2], scenes[:, 2] = (0.0, -0.6), (-1.0, 1.0)
    scenes[:, 7:13] = 0.5
    opened, closed = render(scenes, 64).astype(float)
    x, y = grid(64)
    away = np.hypot(x, y + 0.6)
    dark = [np.abs(image - draw.GRIPPER_COLOR).sum(-1) < 20 for image in (opened, closed)]
    assert not dark[0][away < 0.03].any()
    assert dark[0][(away > 0.08) & (away < 0.09)].all()
    assert dark[1][away < 0.03].all()
    assert not dark[1][away > 0.08].any()


def test_shapes_over_the_edge_are_cut_off():
    inside, over = states(4), states(4)
    corners = np.array([(-1, -1), (1, 1), (-1, 1), (1, -1)])
    inside[:, :2], over[:, :2] = 0.5 * corners, corners
    for scenes in (inside, over):
        scenes[:, 7:20] = 0.0  # everything else in the middle
    whole, cut = render(inside, 64), render(over, 64)
    # The quarter of a ring in the corner is the same as that of a ring in view: 6 by 6 pixels of it.
    for row, (right, top) in enumerate(corners > 0):
        columns, rows = np.arange(6) + 58 * right, np.arange(6) + 58 * (not top)
        x, y = (42 if right else 16), (16 if top else 42)
        quarter = whole[row, y : y + 6, x : x + 6]
        np.testing.assert_array_equal(cut[row][np.ix_(rows, columns)], quarter)


def test_a_picture_does_not_depend_on_its_batch():
    scenes = states(130)
    together = render(scenes, 32)
    alone = np.concatenate([render(scenes[i : i + 1], 32) for i in (0, 63, 64, 129)])
    np.testing.assert_array_equal(together[[0, 63, 64, 129]], alone)


@pytest.mark.parametrize(("size", "digest"), [(32, "d890ffa70f68e90d"), (64, "5319d5f3bda86891")])
def test_pictures_of_fixed_seeds_have_their_stored_hash(size, digest):
    # Colours are rounded to steps of 8, so that the last bit of a float does not matter.
    coarse = (render(states(12), size).astype(np.int64) + 4) // 8
    assert hashlib.sha256(coarse.astype(np.uint8).tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize(("shape", "size"), [((2, 20), 64), ((21,), 64), ((2, 21), 40)])
def test_other_sizes_are_refused(shape, size):
    with pytest.raises(InputError):
        render(np.zeros(shape), size)


def test_a_film_shows_episodes_side_by_side_and_keeps_their_last_picture():
    moving = np.stack([states(7), states(7, seed=9)], axis=1).astype(np.float32)
    moving[3, 1] = np.nan
    frames = film(moving, scale=1, columns=4)
    assert [frame.shape for frame in frames] == [(128, 256, 3)] * 2
    for number in range(7):
        top, left = number // 4 * 64, number % 4 * 64
        for step, frame in enumerate(frames):
            shown = moving[number, 0 if number == 3 else step]
            np.testing.assert_array_equal(frame[top : top + 64, left : left + 64], render(shown[None])[0])
    assert (frames[0][64:, 192:] == 255).all()


def test_heights_are_highest_at_the_gripper_and_zero_on_the_table():
    scenes = states(2)
    scenes[:, :2], scenes[:, 2], scenes[:, 7:13] = (0.0, -0.6), 1.0, 0.5
    depth = render_depth(scenes, 32)
    x, y = grid(32)
    assert depth.shape == (2, 32, 32, 1)
    assert (depth[0, np.hypot(x, y + 0.6) < 0.03] == 240).all()
    assert (depth[0, np.hypot(x - 0.5, y - 0.5) < 0.04] == 120).all()
    assert not depth[0, (np.abs(x) < 0.1) & (np.abs(y) < 0.1)].any()


@pytest.mark.parametrize("size", draw.SIZES)
def test_the_gripper_can_be_read_off_wherever_it_is(size):
    scenes = TabletopBatch(200)
    scenes.reset(np.arange(200), np.arange(200) % 12, np.arange(200))
    found = scenes.state()
    found[:, :2] = np.random.default_rng(0).uniform((-0.85, -0.6), 0.85, (200, 2))
    found[::2, 2] = 1.0
    away = np.linalg.norm(read_gripper(render(found, size)) - found[:, :2], axis=1) * size / 2
    assert np.median(away) < 0.15
    assert np.quantile(away, 0.95) < 0.8
    assert np.isnan(read_gripper(np.full((1, size, size, 3), 220, np.uint8))).all()


def test_cameras_show_what_the_states_are():
    plain, seeing = TabletopBatch(3), TabletopBatch(3, image_size=32, depth=True)
    for env in (plain, seeing):
        env.reset(np.arange(3), np.array([0, 8, 11]), np.arange(3))
    found = seeing.observe()
    assert list(plain.observe()) == ["obs"]
    assert next(iter(found)) == "obs"  # what recorded episodes keep
    np.testing.assert_array_equal(found["obs"], plain.observe()["obs"])
    np.testing.assert_array_equal(found["image"].transpose(0, 2, 3, 1), render(plain.state(), 32))
    np.testing.assert_array_equal(found["pose"], found["obs"][:, :3])
    np.testing.assert_allclose(found["goal"], text_embeddings()[[0, 8, 11], 0], rtol=1e-6)
    heights = render_depth(plain.state(), 32).transpose(0, 3, 1, 2)
    np.testing.assert_allclose((found["depth"] + 1) * 127.5, heights, atol=1e-4)
    with pytest.raises(InputError, match="image_size"):
        TabletopBatch(1, image_size=33)
    with pytest.raises(InputError, match="image_size"):
        TabletopBatch(1, depth=True)
