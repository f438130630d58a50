"""Captions are read back as what they were made of, and images scored by what they state."""

import numpy as np
import pytest
import torch
from noiseworks.bench.testbeds import shapes
from noiseworks.core.errors import InputError


def test_complete_captions_score_as_their_scenes():
    scenes = shapes.sample_scenes(60, 3, "test")
    captions = [shapes.caption(scene) for scene in scenes]
    images = shapes.render(scenes)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    assert not any(shapes.read_caption(text)[1] for text in captions)
    for shown, asked in ((scenes, captions), (scenes[::-1], captions[::-1])):
        np.testing.assert_array_equal(shapes.caption_score(tensor, asked), shapes.score(images, shown))


def test_what_a_caption_leaves_open_does_not_count():
    scenes = [scene for scene in shapes.sample_scenes(30, 4, "test") if scene.kind == "single"]
    images = torch.from_numpy(shapes.render(scenes)).permute(0, 3, 1, 2)
    open_captions = [f"a {scene.objects[0].color} {scene.objects[0].shape}" for scene in scenes]
    assert shapes.caption_score(images, open_captions).tolist() == [1.0] * len(scenes)
    scene, left_open = shapes.read_caption("two circles")
    assert len(scene.objects) == 2
    assert left_open == {"color0", "background"}
    scene, left_open = shapes.read_caption("a circle above a red cross on a black background")
    assert (scene.relation, scene.background, left_open) == ("above", "black", {"color0"})


def test_training_captions_are_read_and_other_texts_refused():
    rng = np.random.default_rng(0)
    for scene in shapes.sample_scenes(200, 5):
        shapes.read_caption(shapes.training_caption(scene, rng))
    with pytest.raises(InputError, match="no caption"):
        shapes.read_caption("a dog on the moon")
