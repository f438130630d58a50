"""Ensembles are their members, losses are what their formulas say, and learners find values known in closed form."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from noiseworks.core.errors import ArtifactError, NonFiniteError
from noiseworks.kits.rl.networks import Critics, GaussianActor, normal_log_prob, polyak
from noiseworks.kits.rl.offline import (
    IQL,
    TD3BC,
    Batch,
    Draws,
    IQLSettings,
    TD3BCSettings,
    expectile_loss,
    load_learner,
    obs_statistics,
    save_learner,
    train_offline,
)
from noiseworks.kits.rl.transitions import Transitions
from noiseworks.kits.training import open_run
from noiseworks.kits.training.testing import check_resume

STATISTICS = torch.zeros(2), torch.ones(2)


def batch(count=64, seed=0):
    g = torch.Generator().manual_seed(seed)
    obs, following = torch.randn(2, count, 2, generator=g)
    actions, rewards = torch.rand(count, 1, generator=g) * 2 - 1, torch.randn(count, generator=g)
    return Batch(obs, actions, rewards, following, (torch.rand(count, generator=g) > 0.3).float())


@pytest.mark.parametrize("layer_norm", [False, True])
def test_an_ensemble_is_its_members(layer_norm):
    critics, data = Critics(2, 1, members=3, hidden=8, layer_norm=layer_norm), batch()
    found = critics(data.obs, data.actions)
    for member in range(3):
        x = torch.cat((data.obs, data.actions), 1)
        for number, layer in enumerate(critics.layers):
            x = x @ layer.weight[member] + layer.bias[member]
            if number < 2:
                x = F.relu(F.layer_norm(x, (8,)) if layer_norm else x)
        torch.testing.assert_close(found[member], x[:, 0])
    assert (found[0] - found[1]).abs().max() > 0.01


def test_densities_and_averages():
    x, mean = torch.randn(2, 5, dtype=torch.float64)
    expected = torch.distributions.Normal(mean, 0.3).log_prob(x)
    torch.testing.assert_close(normal_log_prob(x, mean, math.log(0.3)), expected)
    actor = GaussianActor(2, 3, 8)
    with torch.no_grad():
        actor.log_std.copy_(torch.tensor([0.1, -1.0, 5.0]))  # the last one is cut at 2
    obs, action = torch.randn(4, 2), torch.rand(4, 3)
    std = torch.tensor([0.1, -1.0, 2.0]).exp()
    torch.testing.assert_close(
        actor.log_prob(obs, action), torch.distributions.Normal(actor(obs), std).log_prob(action).sum(-1)
    )
    target, source = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    expected = 0.9 * target.weight + 0.1 * source.weight
    polyak(target, source, 0.1)
    torch.testing.assert_close(target.weight, expected)


def test_td3_bc_losses_are_their_formulas():
    learner, data = TD3BC(1, *STATISTICS, TD3BCSettings(hidden=8), seed=1), batch()
    noise = torch.randn(data.actions.shape, generator=torch.Generator().manual_seed(1)) * 0.2
    action = (learner.target_actor(data.next_obs) + noise.clamp(-0.5, 0.5)).clamp(-1, 1)
    value = learner.target_critics(data.next_obs, action).min(0).values
    target = data.rewards + 0.99 * data.masks * value
    brute = sum(F.mse_loss(q, target) for q in learner.critics(data.obs, data.actions))
    torch.testing.assert_close(learner.critic_loss(data.obs, data, data.next_obs), brute)
    chosen = learner.actor(data.obs)
    q = learner.critics(data.obs, chosen)[0]
    expected = -2.5 / q.abs().mean() * q.mean() + (chosen - data.actions).square().mean()
    torch.testing.assert_close(learner.actor_loss(data.obs, data.actions), expected)


def test_actor_and_targets_move_every_second_update():
    learner, data = TD3BC(1, *STATISTICS, TD3BCSettings(hidden=8), seed=1), batch()
    before = copy.deepcopy(learner)
    learner.update(data)
    assert torch.equal(learner.actor.net[0].weight, before.actor.net[0].weight)
    assert torch.equal(learner.target_critics.layers[0].weight, before.target_critics.layers[0].weight)
    assert not torch.equal(learner.critics.layers[0].weight, before.critics.layers[0].weight)
    learner.update(data)
    assert not torch.equal(learner.actor.net[0].weight, before.actor.net[0].weight)
    expected = torch.lerp(before.target_critics.layers[0].weight, learner.critics.layers[0].weight, 0.005)
    torch.testing.assert_close(learner.target_critics.layers[0].weight, expected)


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9])
def test_expectile_loss_is_least_at_the_expectile(expectile):
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    guesses = torch.linspace(-2, 2, 2001, dtype=torch.float64)
    best = guesses[torch.stack([expectile_loss(values - g, expectile) for g in guesses]).argmin()]
    above, below = (values - best).clamp(min=0).sum(), (best - values).clamp(min=0).sum()
    assert float(above * expectile) == pytest.approx(float(below * (1 - expectile)), rel=0.02)


def loop(count=256):
    """One state that goes on for ever, reward 1 - a^2; half of the steps end instead."""
    g = torch.Generator().manual_seed(3)
    actions = torch.rand(count, 1, generator=g) * 2 - 1
    ends = torch.arange(count) % 2
    obs = torch.zeros(count, 2)
    obs[:, 0] = ends.float()
    return Batch(obs, actions, 1 - actions[:, 0] ** 2, obs, 1 - ends.float())


@pytest.mark.parametrize(
    "learner",
    [
        TD3BC(1, *STATISTICS, TD3BCSettings(hidden=32, gamma=0.5, tau=0.05, learning_rate=3e-3, alpha=20.0)),
        IQL(
            1,
            *STATISTICS,
            IQLSettings(hidden=32, gamma=0.5, tau=0.05, learning_rate=3e-3, expectile=0.97, beta=20.0),
        ),
    ],
    ids=["td3bc", "iql"],
)
def test_values_and_actions_of_a_loop(learner):
    """The best action is 0; Q(0) = 1 where the step ends and 1 / (1 - 0.5) = 2 where it goes on."""
    data = loop()
    train_offline(learner, Draws(data, len(data.rewards)), 900)
    states = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    values = learner.critics(states, torch.zeros(2, 1)).mean(0)
    torch.testing.assert_close(values, torch.tensor([2.0, 1.0]), atol=0.12, rtol=0)
    assert learner.act(states).abs().max() < 0.2
    assert learner.policy()(np.zeros((3, 2), np.float32)).shape == (3, 1)


def test_observations_are_standardised():
    seen = np.random.default_rng(0).normal([5, -3], [2, 0.5], (400, 2)).astype(np.float32)
    data = Transitions(
        seen, np.zeros((400, 1)), np.zeros(400), seen, np.arange(400) == -1, np.arange(400) == 399
    )
    learner = IQL(1, *obs_statistics(data))
    x = learner.normalise(Batch.of(data).obs)
    torch.testing.assert_close(x.mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.std(0), torch.ones(2), atol=5e-3, rtol=0)


@pytest.mark.parametrize("kind", [TD3BC, IQL])
def test_learners_are_saved_and_learn_the_same_from_the_same_seed(kind, tmp_path):
    learners = [kind(1, *STATISTICS, seed=4) for _ in range(2)]
    for learner in learners:
        for number in range(3):
            learner.update(batch(seed=number))
    obs = torch.randn(5, 2)
    assert torch.equal(learners[0].act(obs), learners[1].act(obs))
    save_learner(tmp_path / "learner", learners[0])
    back = load_learner(tmp_path / "learner")
    assert torch.equal(back.act(obs), learners[0].act(obs))
    assert back.updates == 3
    (tmp_path / "learner/config.json").write_text("{}")
    with pytest.raises(ArtifactError):
        load_learner(tmp_path / "learner")


def test_losses_that_are_not_finite_stop():
    data = batch()._replace(rewards=torch.full((64,), math.nan))
    for learner in (TD3BC(1, *STATISTICS), IQL(1, *STATISTICS)):
        with pytest.raises(NonFiniteError, match="step 0"):
            learner.update(data)


@pytest.mark.parametrize(("kind", "settings"), [(TD3BC, TD3BCSettings), (IQL, IQLSettings)])
def test_learning_that_was_stopped_or_killed_goes_on_to_the_same_numbers(kind, settings, tmp_path):
    def train(folder):
        learner = kind(1, *STATISTICS, settings(hidden=8), seed=4)
        with open_run(folder, {}) as run:
            train_offline(learner, Draws(batch(), 8, seed=1), 330, run, checkpoint_every=0)
        return learner.state_dict() | {"updates": torch.tensor(learner.updates)}

    check_resume(train, tmp_path, stop_at=2)
    assert train(tmp_path / "whole")["updates"] == 330
