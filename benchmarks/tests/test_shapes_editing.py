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
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model

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


def test_the_shipped_editor_edits_as_its_card_says():
    from noiseworks.bench.testbeds.shapes.inpaint_training import edited
    from noiseworks.kits.diffusers_hosts import load_pipeline

    (card,) = [card for card in list_cards() if card["name"] == "shapes-inpaint"]
    share = card["quality"]["edits that come out, mask seen"]["value"]
    found = edit_success(
        edited(load_pipeline("testbed:shapes-inpaint"), sample_edits(24, 6), "seen", 6), sample_edits(24, 6)
    )
    assert abs(found.mean() - share) < 0.25  # 24 edits: the standard error of a share is about 0.1
    assert resolve_model("testbed:shapes-inpaint")
