"""A buffer that was saved goes on where it stood in its ring."""

import torch
from noiseworks.kits.rl.offline import Batch
from noiseworks.kits.rl.replay import ReplayBuffer


def numbered(first, count):
    numbers = torch.arange(first, first + count, dtype=torch.float32)
    return Batch(numbers[:, None], numbers[:, None], numbers, numbers[:, None], numbers)


def test_a_saved_ring_goes_on_where_it_stood():
    whole = ReplayBuffer(5, 1, 1)
    whole.add(numbered(0, 5))
    whole.add(numbered(5, 3))
    saved = ReplayBuffer(5, 1, 1)
    saved.load_state_dict(whole.state_dict())
    for buffer in (whole, saved):
        buffer.add(numbered(8, 1))
    assert whole.rows.rewards.tolist() == [5, 6, 7, 8, 4]
    for own, other in zip(whole.rows, saved.rows, strict=True):
        assert torch.equal(own, other)
