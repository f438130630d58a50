"""People with tastes: features say what scenes are, tastes choose by them, both scorers know the hidden rule."""

import numpy as np
import pytest
import torch
from noiseworks.bench.testbeds.shapes import render, sample_scenes
from noiseworks.bench.testbeds.shapes.scenes import Object, Scene
from noiseworks.bench.testbeds.shapes.tastes import (
    FEATURES,
    features,
    prefers_first,
    quality,
    quality_read,
    raw_features,
    sharpness,
    steepness,
    tastes,
)
from torch.nn.functional import avg_pool2d
from torch.testing import assert_close


def scene(color="red", x=16.0, y=16.0, radius=8.0, background="white"):
    return Scene("single", background, (Object("circle", color, x, y, radius),), "large", "center")


def images(*scenes):
    return torch.from_numpy(render(scenes)).permute(0, 3, 1, 2)


def test_each_feature_follows_what_it_is_named_after():
    changes = {
        "warmth": ({"color": "blue"}, {"color": "red"}),
        "brightness": ({"color": "blue"}, {"color": "yellow"}),
        "size": ({"radius": 5.0}, {"radius": 8.0}),
        "right": ({"x": 9.5}, {"x": 22.5}),
        "low": ({"y": 9.5}, {"y": 22.5}),
        "background": ({"background": "black"}, {"background": "white"}),
    }
    assert tuple(changes) == FEATURES
    for number, (low, high) in enumerate(changes.values()):
        found = features(images(scene(**low), scene(**high)))[:, number]
        assert found[1] - found[0] > 1, FEATURES[number]
    empty = raw_features(torch.ones(1, 3, 32, 32))
    assert empty.tolist() == [[0, 0, 0, 0, 0, 1]]
    drawn = images(*[one for one in sample_scenes(400, 3, "test") if one.kind == "single"])
    torch.testing.assert_close(features(drawn).mean(0), torch.zeros(6), atol=0.2, rtol=0)


def test_choices_follow_tastes():
    people = tastes(5, 1)
    assert torch.equal(people[:3], tastes(3, 1))
    torch.testing.assert_close(people.norm(dim=1), torch.ones(5))
    generator = torch.Generator().manual_seed(0)
    first = torch.full((4000,), 0.5)
    share = prefers_first(first, torch.zeros(4000), generator, temperature=0.5).float().mean()
    assert float(share) == pytest.approx(0.731, abs=0.03)


def test_both_scorers_know_the_rule():
    good, off, dull = (
        scene(background="black", color="yellow"),
        scene(x=9.5, y=9.5),
        scene("green", background="gray"),
    )
    corner = scene("green", x=22.5, y=22.5, background="gray")
    for scorer in (quality, quality_read):
        best, *others, worst = scorer(images(good, off, dull, corner)).tolist()
        assert best > max(others) >= min(others) > worst - 1e-6
    scenes = [one for one in sample_scenes(300, 5, "test") if one.kind == "single"]
    both = np.corrcoef(quality(images(*scenes)), quality_read(images(*scenes)))[0, 1]
    assert both > 0.7


def test_blur_lowers_sharpness():
    drawn = images(*[one for one in sample_scenes(50, 5, "test") if one.kind == "single"])
    blurred = avg_pool2d(drawn, 3, stride=1, padding=1, count_include_pad=False)
    assert float((sharpness(blurred) / sharpness(drawn)).mean()) < 0.5


def test_contrast_and_brightness_are_no_sharpness():
    drawn = images(*[one for one in sample_scenes(50, 5, "test") if one.kind == "single"])
    for changed in (0.5 * drawn, 0.4 * drawn + 0.3, 1 - drawn):
        assert_close(sharpness(changed), sharpness(drawn), rtol=1e-4, atol=1e-6)
    assert_close(steepness(0.5 * drawn), 0.5 * steepness(drawn))
    assert_close(steepness(1 - drawn), steepness(drawn))
    assert sharpness(torch.full((1, 3, 32, 32), 0.4)).tolist() == [0]


def test_size_is_hardly_sharpness():
    singles = [one for one in sample_scenes(300, 5, "test") if one.kind == "single"]
    small, large = (
        sharpness(images(*[one for one in singles if one.size == size])).mean() for size in ("small", "large")
    )
    assert float(small / large) == pytest.approx(1, abs=0.1)
