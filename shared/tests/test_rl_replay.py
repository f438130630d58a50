"""A buffer that was saved goes on where it stood in its ring, and batches mix what it holds with what was recorded."""

import torch
from noiseworks.kits.rl.offline import Batch
from noiseworks.kits.rl.replay import ReplayBuffer, mixed


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


def test_recorded_rows_stand_anywhere_in_a_mixed_batch():
    """Each part of a batch that is taken in several updates then has recorded rows and own ones."""
    online = ReplayBuffer(50, 1, 1)
    online.add(numbered(0, 50))
    batch = mixed(online, numbered(100, 50), 400, 0.25, torch.Generator().manual_seed(0))
    recorded = batch.rewards >= 100
    assert int(recorded.sum()) == 100
    assert all(10 <= int(part.sum()) <= 40 for part in recorded.chunk(4))
    assert torch.equal(batch.rewards, batch.obs[:, 0])
