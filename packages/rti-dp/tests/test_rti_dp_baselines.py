"""Temporal ensembling against its definition, and the authors' lists of steps."""

import numpy as np
import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.policies import LinearNormalizer, make_scheduler
from noiseworks.rti_dp import EnsemblePolicy, published_steps
from noiseworks.rti_dp.options import parse_steps


class Planned:
    """Plans are counted: the j-th entry of the n-th plan of the batch is 0.1 n + 0.01 j in every dimension."""

    horizon, n_obs_steps, n_action_steps, action_dim = 6, 2, 1, 2

    def __init__(self):
        self.scheduler = make_scheduler(4, prediction_type="sample")
        self.normalizer = LinearNormalizer.identity(2)
        self.calls = 0

    def encode(self, obs):
        return obs["obs"].flatten(1)

    def denoise(self, x, k, cond):
        self.calls += 1
        plan = 0.1 * self.calls + 0.01 * torch.arange(6.0)
        return plan[None, :, None].expand_as(x)


@pytest.mark.parametrize("m", [0.0, 0.5])
def test_an_ensemble_is_the_weighted_mean_of_the_plans_that_reach_now(m):
    policy = EnsemblePolicy(Planned(), m=m, num_inference_steps=1, num_envs=2)
    obs = {"obs": torch.zeros(2, 3)}
    for step in range(8):
        if step == 5:
            policy.reset([1])
        found = policy.act(obs)
        for row, first in ((0, 0), (1, 0 if step < 5 else 5)):
            # A plan's entries from To - 1 = 1 on are for its own step and the four after it.
            reach = list(range(max(first, step - 4), step + 1))
            said = [0.1 * (made + 1) + 0.01 * (1 + step - made) for made in reach]
            weights = np.exp(-m * np.arange(len(reach)))
            assert found[row].tolist() == pytest.approx([np.average(said, weights=weights)] * 2, abs=1e-6)
    assert policy.stats.nfes == [1] * 8
    alone = policy.predict_chunk({"obs": torch.zeros(2, 2, 3)}).prediction
    assert float(alone[0, 1, 0]) == pytest.approx(0.1 * 9 + 0.01)
    with pytest.raises(InputError, match="m must"):
        EnsemblePolicy(Planned(), m=-1)


def test_the_authors_lists_have_their_lengths():
    lengths = {
        ("lift", "clip"): (11, 13),
        ("can", "clip"): (15, 13),
        ("square", "clip"): (16, 15),
        ("tool-hang", "clip"): (17, 16),
        ("transport", "clip"): (19, 11),
        ("square", "scale"): (10, 21),
        ("can", "scale"): (5, 10),
        ("transport", "scale"): (5, 4),
    }
    for (task, mode), wanted in lengths.items():
        lists = [published_steps(task, mode, seen) for seen in ("lowdim", "image")]
        assert tuple(map(len, lists)) == wanted, task
        assert all(list(one) == sorted(set(one), reverse=True) and one[-1] == 0 for one in lists)
    assert parse_steps("pusht:none") == (2, 1, 0)
    assert parse_steps("pusht:none:image") == (3, 1, 0)
    for words in ("fly:clip", "pusht:clip", "can:clip:sound", "block-push:none:image"):
        with pytest.raises(InputError):
            parse_steps(words)
