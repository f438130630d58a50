"""The training of the motion model: its loss, its hints, and clips that it refuses."""

import numpy as np
import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.dip.options import Fitting
from noiseworks.dip.training import check_clips, draw_hints, motion_loss


def test_the_loss_of_a_clip():
    found, target = torch.randn(2, 2, 7, 69, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    error = (found - target)[0].numpy()
    steps = np.diff(error, axis=0)
    expected = (error**2).mean() + (error[:, 66:] ** 2).mean() + (steps**2).mean()
    assert float(motion_loss(found, target)[0]) == pytest.approx(expected)
    released = (error**2).mean() + (error[:, 66:] ** 2).mean() + (steps[:, :68] ** 2).mean()
    assert float(motion_loss(found, target, reference=True)[0]) == pytest.approx(released)


def test_hints_are_one_joint_in_some_frames():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mask = draw_hints(200, 12)
    assert (mask.any(1).sum(-1) == 1).all()
    count = mask.sum((1, 2))
    assert (int(count.min()), int(count.max())) == (1, 11)
    assert len(set(mask.any(1).float().argmax(-1).tolist())) == 22


def test_clips_that_cannot_be_learnt_from_are_refused():
    good = {"motion": torch.zeros(4, 24, 69), "actions": torch.zeros(4, dtype=torch.int64)}
    fitting = Fitting(batch_size=4)
    for changes, word in (
        ({"motion": torch.zeros(4, 24, 68)}, "motion"),
        ({"motion": torch.full((4, 24, 69), torch.nan)}, "NaN"),
        ({"actions": torch.full((4,), 3)}, "actions"),
    ):
        with pytest.raises(InputError, match=word):
            check_clips(good | changes, fitting)
    with pytest.raises(InputError, match="fewer"):
        check_clips(good, Fitting(batch_size=8))
