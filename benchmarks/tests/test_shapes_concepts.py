"""The soft score of concepts: what is drawn is visible, what is not is not."""

import numpy as np
import pytest
from noiseworks.bench.testbeds.shapes.clip_training import concepts_of, pair_scenes
from noiseworks.bench.testbeds.shapes.concepts import CONCEPTS, concept_pairs, concept_scores, open_prompts
from noiseworks.bench.testbeds.shapes.scenes import read_caption, render
from noiseworks.core.errors import InputError


def test_both_concepts_of_a_scene_are_visible_and_no_other():
    scenes = pair_scenes(40, 11, "test")
    images = render(scenes)
    for side in (0, 1):
        assert concept_scores(images, [concepts_of(scene)[side] for scene in scenes]).min() > 0.8
    rng = np.random.default_rng(0)
    others = [str(rng.choice([c for c in CONCEPTS if c not in concepts_of(s)])) for s in scenes]
    assert concept_scores(images, others).mean() < 0.05


def test_a_concept_fades():
    scenes = pair_scenes(20, 12, "test")
    images, empty = render(scenes), np.broadcast_to(np.float32(0.5), (20, 32, 32, 3))
    texts = [concepts_of(scene)[0] for scene in scenes]
    gray = [i for i, scene in enumerate(scenes) if scene.background == "gray"]
    assert concept_scores(empty, texts).max() == 0
    full, half = (concept_scores(part, texts)[gray].mean() for part in (images, (images + empty) / 2))
    assert half < full


def test_pairs_differ_and_prompts_leave_one_colour_open():
    pairs = concept_pairs(60, 3)
    assert len(set(pairs)) == 60
    for a, b in pairs:
        assert all(x != y for x, y in zip(a.split()[1:], b.split()[1:], strict=True))
    first, second = open_prompts(("a red circle", "a blue square"), "left of")
    assert (first, second) == ("a red circle left of a square", "a circle left of a blue square")
    assert "color1" in read_caption(first)[1]
    assert "color0" in read_caption(second)[1]


def test_texts_that_are_no_concepts_are_refused():
    images = render(pair_scenes(1, 0))
    with pytest.raises(InputError, match="no concept"):
        concept_scores(images, ["a large red circle"])
    with pytest.raises(InputError, match="1 images"):
        concept_scores(images, list(CONCEPTS[:2]))
    with pytest.raises(InputError, match="relation"):
        open_prompts(("a red circle", "a blue square"), "below")
