"""Blending of two rounds: a rotation power by hand, and its ends."""

import numpy as np
import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.dip import blend
from noiseworks.dip.blending import between
from noiseworks.kits.motion import ProcBody
from noiseworks.kits.motion.rotations import matrices_of

BODY = ProcBody()


def some_motion(seed):
    """A body that stands, every number of its pose a little off [12, 69]."""
    motion = 0.3 * torch.randn(12, 69, generator=torch.Generator().manual_seed(seed))
    motion[..., 1:3] += np.pi / 2**0.5
    motion[..., 66:] -= BODY.root
    return motion


def test_blending_turns_evenly():
    start, end = torch.zeros(12, 69), torch.zeros(15, 69)
    end[:, 2], end[:, 66] = np.pi / 2, 1.1
    joined = blend(start, end, 10)
    assert len(joined) == 17
    assert joined[2:5, 2].tolist() == pytest.approx([0.1427997, 0.2855993, 0.4283990], abs=1e-6)
    assert joined[2:12, 66].tolist() == pytest.approx([1.1 * k / 11 for k in range(1, 11)], abs=1e-6)
    assert torch.equal(joined[:2], start[:2])
    assert torch.equal(joined[12:], end[10:])
    assert torch.equal(blend(start, end, 0), torch.cat((start, end)))
    with pytest.raises(InputError, match="cannot share 13"):
        blend(start, end, 13)


def test_weights_of_0_and_1_are_the_two_poses():
    start, end = some_motion(2), some_motion(3)
    for weight, pose in ((0.0, start), (1.0, end)):
        found = between(start, end, torch.full((12,), weight))
        assert torch.equal(found[:, 66:], pose[:, 66:])
        assert torch.allclose(BODY(found)[1], BODY(pose)[1], atol=1e-5)


def test_blending_with_itself_and_with_full_turns():
    motion, other = some_motion(0), some_motion(1)
    assert torch.allclose(BODY(blend(motion, motion, 12))[0], BODY(motion)[0], atol=1e-5)
    turned = other.clone()
    vectors = turned[:, :66].unflatten(-1, (22, 3))
    turned[:, :66] = (vectors * (1 - 2 * np.pi / vectors.norm(dim=-1, keepdim=True))).flatten(-2)
    one, same = blend(motion, other, 12), blend(motion, turned, 12)
    matrices = [matrices_of(x[:, :66].unflatten(-1, (22, 3))) for x in (one, same)]
    assert torch.allclose(*matrices, atol=1e-3)
