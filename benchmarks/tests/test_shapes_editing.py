"""Edits of scenes: masks lie where they should, the oracle tells edits that come out, the shipped editor edits."""

import numpy as np
import pytest
from noiseworks.bench.testbeds.cards import list_cards
from noiseworks.bench.testbeds.shapes import render
from noiseworks.bench.testbeds.shapes.editing import (
    MASK_KINDS,
    UNSEEN,
    edit_masks,
    edit_success,
    kept_region,
    sample_edits,
)
from noiseworks.bench.testbeds.shapes.protection import EDITORS, originals_of, photograph_crops, try_editor
from noiseworks.core.errors import InputError

EDITS = sample_edits(12, 5)


def test_edits_ask_for_another_background_and_do_not_depend_on_their_number():
    assert all(edit.background != edit.scene.background for edit in EDITS)
    assert all(
        edit.background in edit.prompt and edit.scene.objects[0].color not in edit.prompt for edit in EDITS
    )
    assert sample_edits(4, 5) == EDITS[:4]


def test_masks_keep_the_object_in_the_ways_that_they_are_called():
    for edit in EDITS:
        kept = {kind: kept_region(edit.scene, kind) for kind in MASK_KINDS}
        assert not (kept["eroded"] & ~kept["seen"]).any()
        assert not (kept["seen"] & ~kept["dilated"]).any()
        assert 0 < kept["eroded"].sum() < kept["seen"].sum() < kept["dilated"].sum()
        assert (kept["seen"] & kept["box"]).sum() >= 0.9 * kept["seen"].sum()
        assert len({kept[kind].tobytes() for kind in ("seen", *UNSEEN)}) >= 5
    masks = edit_masks(EDITS, "box")
    assert masks.shape == (12, 1, 32, 32)
    assert np.array_equal(masks[0, 0] == 0, kept_region(EDITS[0].scene, "box"))
    with pytest.raises(InputError, match="mask"):
        kept_region(EDITS[0].scene, "lasso")


def test_an_edit_comes_out_only_with_its_object_on_its_background():
    assert edit_success(render([edit.wanted for edit in EDITS]), EDITS).mean() >= 0.9
    assert not edit_success(render([edit.scene for edit in EDITS]), EDITS).any()
    others = [EDITS[(i + 1) % len(EDITS)].wanted for i in range(len(EDITS))]
    assert not edit_success(render(others), EDITS).any()


@pytest.mark.parametrize("model", EDITORS)
def test_the_shipped_editors_edit_as_their_cards_say(model):
    from noiseworks.bench.testbeds.shapes.inpaint_training import edited
    from noiseworks.kits.diffusers_hosts import load_pipeline

    (card,) = [card for card in list_cards() if f"testbed:{card['name']}" == model]
    share = card["quality"]["edits that come out, mask seen"]["value"]
    found = edit_success(edited(load_pipeline(model), sample_edits(24, 6), "seen", 6), sample_edits(24, 6))
    assert abs(found.mean() - share) < 0.25  # 24 edits: the standard error of a share is about 0.1


def test_the_second_editor_shares_no_weights_with_the_first():
    from noiseworks.kits.diffusers_hosts import load_pipeline

    first, second = (load_pipeline(model) for model in EDITORS)
    for part in ("vae", "unet", "text_encoder"):
        sizes = [sum(p.numel() for p in getattr(pipe, part).parameters()) for pipe in (first, second)]
        assert sizes[1] < 0.5 * sizes[0]
    assert first.scheduler.config.prediction_type != second.scheduler.config.prediction_type


def test_another_picture_is_told_from_the_original_and_the_original_is_not():
    edits = EDITS[:2]
    originals = originals_of(edits)
    same, other = try_editor(
        EDITORS[1], edits, {"same": originals, "other": 255 - originals}, seed=1, steps=2
    )
    assert same["feature_distance"] == same["fail_when_protected"] == 0
    assert other["feature_distance"] > 0.01
    assert same["originals_right"] == other["originals_right"]


def test_parts_of_photographs_are_disjoint_and_no_more_than_there_are():
    crops = photograph_crops(12, 64)
    assert crops.shape == (12, 64, 64, 3)
    assert np.array_equal(crops[:4], photograph_crops(4, 64))
    assert len({crop.tobytes() for crop in crops}) == 12
    assert crops.std(axis=(1, 2, 3)).mean() > 20  # pictures of something
    with pytest.raises(InputError, match="count"):
        photograph_crops(1000)
