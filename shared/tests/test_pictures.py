"""Pictures, pixel by pixel."""

import numpy as np
import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.pictures import (
    ABSENT,
    BLUE,
    RED,
    Canvas,
    film,
    grid,
    shade,
    strip,
    to_pixels,
    write_picture,
)
from PIL import Image


def coloured(*values, side=2):
    return np.stack([np.full((side, side, 3), value, np.uint8) for value in values])


def test_shades_go_from_white_to_the_full_colour():
    assert [shade(0), shade(1), shade(1, RED), shade(2), shade(-1)] == [
        (255, 255, 255),
        BLUE,
        RED,
        BLUE,
        (255, 255, 255),
    ]
    assert shade(float("nan")) == ABSENT


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_a_heat_map_has_a_cell_for_each_value(tmp_path, suffix):
    canvas = Canvas(60, 30)
    canvas.heat_map([[0.0, 1.0], [float("nan"), 1.0]], (20, 4), (10, 8), gap=2)
    with Image.open(canvas.write(tmp_path / f"map{suffix}")) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (30, 60, 3)
    assert (pixels[4:10, 30:40] == BLUE).all()
    assert (pixels[12:18, 20:30] == ABSENT).all()
    assert (pixels[10:12] == 255).all()  # the gap
    assert (pixels == BLUE).all(-1).sum() == 2 * 10 * 6


def test_the_same_canvas_as_svg_holds_boxes_lines_and_escaped_words(tmp_path):
    canvas = Canvas(60, 30)
    canvas.heat_map(np.eye(3), (20, 4), (5, 5), names=("a<b", "", ""))
    canvas.line([(0, 0), (5.5, 5)], RED)
    canvas.line([(0, 0)])
    text = canvas.write(tmp_path / "map.svg").read_text()
    assert text.count("<rect") == 1 + 7  # the ground, and two, three and two boxes: equal neighbours are one
    assert '<rect x="25" y="4" width="10" height="5" fill="#ffffff"' in text
    assert text.count("#1f5daa") == 3
    assert text.count("<polyline") == 1
    assert 'points="0,0 5.5,5"' in text
    assert "a&lt;b" in text


def test_other_formats_are_refused(tmp_path):
    for write in (Canvas(4, 4).write, lambda path: write_picture(coloured(0)[0], path)):
        with pytest.raises(InputError, match="must end in"):
            write(tmp_path / "a.gif")
    with pytest.raises(InputError, match="must end in"):
        write_picture(coloured(0)[0], tmp_path / "a.svg")
    assert not list(tmp_path.iterdir())


def test_a_strip_is_side_by_side_and_filled_up(tmp_path):
    made = strip(coloured(10, 20), columns=3, scale=2)
    assert made.shape == (4, 12, 3)
    assert made[0, ::4, 0].tolist() == [10, 20, 255]
    with Image.open(write_picture(made, tmp_path / "strip.webp")) as image:
        assert (np.asarray(image) == made).all()


def test_a_grid_is_aligned_behind_its_names():
    rows = {"cfg": coloured(10, 20, side=16), "adaptive": coloured(30, side=16)}
    made = grid(rows, captions=("red", "blue"))
    left, top = 6 * len("adaptive") + 8, 14
    assert made.shape == (top + 32, left + 32, 3)
    assert made[top:, left:][::16, ::16, 0].tolist() == [[10, 20], [30, 255]]
    assert (made[:top] < 255).any()
    assert (made[top:, :left] < 255).any()
    assert grid({"": coloured(10, 20)}).shape == (2, 4, 3)


def test_a_film_keeps_the_last_picture_of_what_is_over():
    frames = film([coloured(1, 2, 3), coloured(9), coloured(5, 6)], columns=2)
    assert len(frames) == 3
    assert [frame[::2, ::2, 0].tolist() for frame in frames] == [
        [[1, 9], [5, 255]],
        [[2, 9], [6, 255]],
        [[3, 9], [6, 255]],
    ]


def test_images_become_pixels():
    images = torch.tensor([-0.5, 0.0, 0.5, 1.5]).reshape(4, 1, 1, 1).expand(4, 3, 1, 1)
    assert to_pixels(images)[:, 0, 0, 0].tolist() == [0, 0, 128, 255]
