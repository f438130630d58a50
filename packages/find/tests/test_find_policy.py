"""The policy, its loss and the loop against numbers that were computed by hand, and against closed forms."""

import math

import pytest
import torch
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.find import (
    FIND,
    Fitting,
    NoisePolicy,
    Objective,
    RewardCalibrator,
    Weights,
    best_noise,
    centred_ranks,
    cross_entropy,
    find_policy_loss,
)

Z = torch.tensor([1.0, -2.0, 0.5, 0.0]).view(1, 1, 2, 2)
WEIGHTS = Weights(0.2, 10.0, 0.01)


def policy_at(mean, std):
    policy = NoisePolicy((1, 2, 2))
    torch.nn.init.constant_(policy.own_mean, mean)
    torch.nn.init.constant_(policy.own_std, std)
    return policy


def loss_of(policy, z=Z, advantage=0.7, reference=None, surrogate="hard"):
    log_ratio = policy.log_prob(z) - (reference or NoisePolicy((1, 2, 2))).log_prob(z).detach()
    advantages = torch.full((len(z),), advantage)
    return find_policy_loss(log_ratio, advantages, policy.penalty(), WEIGHTS, surrogate)


@pytest.mark.parametrize(
    ("at", "log_prob", "loss", "mean", "std"),
    [
        ((0.0, 1.0), -1.5751886, -7.0, (-1.75, 3.5, -0.875, 0), (0, -5.25, 1.3125, 1.75)),
        (
            (0.1, 0.9),
            -1.6453681,
            -6.5253854,
            (-1.812163, 4.230046, -0.805128, 0.201907),
            (-0.000500, -8.056779, 1.454106, 1.789784),
        ),
    ],
)
def test_loss_and_gradients_by_hand(at, log_prob, loss, mean, std):
    policy = policy_at(*at)
    assert float(policy.log_prob(Z).detach()) == pytest.approx(log_prob, abs=1e-6)
    found = loss_of(policy)
    assert float(found.detach()) == pytest.approx(loss, abs=1e-5)
    found.backward()
    assert policy.own_mean.grad.flatten().tolist() == pytest.approx(mean, abs=2e-5)
    assert policy.own_std.grad.flatten().tolist() == pytest.approx(std, abs=2e-5)


def test_outside_of_the_clip_only_the_penalty_pulls():
    policy, alone = policy_at(0.1, 0.7), policy_at(0.1, 0.7)
    loss_of(policy).backward()
    (0.01 * alone.penalty()).backward()
    assert torch.equal(policy.own_mean.grad, alone.own_mean.grad)
    # PPO's minimum keeps the gradient of a noise that was good and became less likely.
    other = policy_at(0.1, 0.7)
    loss_of(other, surrogate="ppo").backward()
    assert other.own_mean.grad.abs().max() > 10 * alone.own_mean.grad.abs().max()


def test_penalties():
    for kind in ("squared", "kl"):
        policy = policy_at(0.0, 1.0)
        policy.penalty(kind).backward()
        assert float(policy.penalty(kind).detach()) == 0
        assert not policy.own_mean.grad.any()
        assert not policy.own_std.grad.any()
    assert float(policy_at(0.1, 0.9).penalty().detach()) == pytest.approx(0.02)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(0.1, 0.9), torch.distributions.Normal(0.0, 1.0)
    )
    assert float(policy_at(0.1, 0.9).penalty("kl").detach()) == pytest.approx(float(kl))


def test_the_calibrator_is_the_published_network():
    with torch.device("meta"):
        assert sum(p.numel() for p in RewardCalibrator((4, 64, 64), 768).parameters()) == 8_717_313


def test_samples_follow_the_policy_and_pairs_mirror_it():
    policy = policy_at(0.3, 0.5)
    z = policy.sample(range(20_000)).detach().flatten()
    assert float(z.mean()) == pytest.approx(0.3, abs=4 * 0.5 / math.sqrt(len(z)))
    assert float(z.std()) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(2 * len(z)))
    pairs = policy.sample([1, 2], antithetic=True).detach()
    torch.testing.assert_close(pairs[::2] + pairs[1::2], 2 * policy.mean.detach().expand(2, -1, -1, -1))
    assert torch.equal(pairs[0], policy.sample([1]).detach()[0])


def test_cells_share_and_are_refused_where_they_do_not_divide():
    policy = NoisePolicy((2, 4, 4), cells=2)
    assert policy.own_mean.shape == (1, 2, 2, 2)
    torch.nn.init.normal_(policy.own_mean)
    assert torch.equal(policy.mean[0, 1, :2, 2:], policy.own_mean[0, 1, 0, 1].expand(2, 2))
    with pytest.raises(InputError, match="cells"):
        NoisePolicy((2, 4, 4), cells=3)


def test_ranks():
    assert centred_ranks(torch.tensor([3.0, 1.0, 1.0, 9.0])).tolist() == pytest.approx(
        [1 / 3, -2 / 3, -2 / 3, 1]
    )
    assert centred_ranks(torch.tensor([3.0])).tolist() == [0]


def fit_of(worth, n=64, objective=Objective(), **changes):
    settings = {"device": "cpu", "learning_rate": 1e-2, "batch_size": 64, "max_steps": 300} | changes
    return FIND(worth, (1, 1, n), torch.zeros(4), Fitting(**settings), objective)


@pytest.mark.parametrize("reference", ["behaviour", "initial"])
@pytest.mark.filterwarnings("ignore:iteration")
def test_it_finds_the_best_noise_of_a_quadratic(reference):
    a = torch.randn(64, generator=torch.Generator().manual_seed(0))
    found = fit_of(
        lambda z, seeds: -(z.flatten(1) - a).square().mean(1),
        objective=Objective(ratio_reference=reference, advantage="ranks"),
    )
    found.fit(progress=False)
    mean = found.policy.mean.detach().flatten()
    assert torch.cosine_similarity(mean, a, dim=0) > 0.95
    assert (found.rewards[-1] > -0.15) == (reference == "behaviour")


def test_the_first_step_moves_each_coordinate_by_the_learning_rate():
    found = fit_of(lambda z, seeds: z.flatten(1).sum(1), n=8, batch_size=4, learning_rate=1e-3)
    expected = found.round(0)["expected"]
    (one,) = found.kept
    advantages, z = (one.rewards - expected)[:, None], one.z.flatten(1)
    # The signs of mean(A z) and mean(A (z^2 - 1)), which are those of the expected reward's gradient.
    for own, score in ((found.policy.own_mean, z), (found.policy.own_std - 1, z.square() - 1)):
        steps = 1e-3 * (advantages * score).mean(0).sign()
        assert own.detach().flatten().tolist() == pytest.approx(steps.tolist(), rel=2e-4, abs=0)


def test_no_advantage_moves_nothing_and_a_constant_reward_is_learned():
    found = fit_of(
        lambda z, seeds: torch.zeros(len(z)),
        n=8,
        batch_size=4,
        objective=Objective(penalty_weight=0, advantage="raw"),
    )
    found.round(0)
    assert not found.policy.own_mean.detach().any()
    assert bool((found.policy.own_std.detach() == 1).all())
    constant = fit_of(
        lambda z, seeds: torch.full((len(z),), 0.7),
        n=8,
        batch_size=4,
        objective=Objective(calibrator_rate=1e-2),
    )
    with pytest.warns(UserWarning, match="nothing to learn"):
        constant.fit(progress=False)
    assert constant.round(150)["expected"] == pytest.approx(0.7, abs=0.02)


def test_rewards_are_of_the_same_noise():
    """The released code reads the rewards of the oldest rollout that it keeps."""
    calls = []

    def worth(z, seeds):
        calls.append(z)
        return torch.arange(len(z)) + 10.0 * len(calls)

    found = fit_of(worth, n=4, batch_size=3, objective=Objective(replay=2))
    for step in range(4):
        found.round(step)
    assert [one.rewards[0].item() for one in found.kept] == [20, 30, 40]
    assert all(torch.equal(one.z, z) for one, z in zip(found.kept, calls[1:], strict=True))


def test_noise_and_chains_are_those_of_the_seed_and_the_iteration():
    drawn = []

    def worth(z, seeds):
        drawn.append((z.flatten().tolist(), list(seeds)))
        return z.flatten(1).sum(1)

    for seed, step in ((3, 0), (3, 0), (4, 0), (3, 1)):
        fit_of(worth, n=4, batch_size=2, seed=seed).round(step)
    first, again, *others = drawn
    assert first == again
    for noise, chains in others:
        assert not set(noise) & set(first[0])
        assert not set(chains) & set(first[1])


def test_the_gradient_is_that_of_the_expected_reward():
    """For r = b z the mean gradient is -w_r b / n."""
    b, n = torch.tensor([1.0, -0.5, 0.0, 2.0]), 4
    policy = NoisePolicy((1, 1, n))
    z = policy.sample(range(20_000)).detach()
    rewards = z.flatten(1) @ b
    found = find_policy_loss(
        policy.log_prob(z) - policy.log_prob(z).detach(), rewards, policy.penalty(), WEIGHTS
    )
    found.backward()
    each = -10 * rewards[:, None] * z.flatten(1) / n
    error = each.std(0) / math.sqrt(len(z))
    assert bool(((policy.own_mean.grad.flatten() + 10 * b / n).abs() < 4 * error).all())


def test_sigma_stays_above_its_floor():
    found = fit_of(
        lambda z, seeds: -z.flatten(1).square().sum(1), n=4, batch_size=2, learning_rate=0.5, max_steps=100
    )
    with pytest.warns(UserWarning, match="far from standard normal"):
        found.fit(progress=False)
    assert float(found.policy.own_std.detach().min()) >= 1e-4


def test_wrong_rewards_stop_the_fit():
    with pytest.raises(NonFiniteError, match="reward"):
        fit_of(lambda z, seeds: z.flatten(1).sum(1) / 0, n=4, batch_size=2).round(0)
    with pytest.raises(InputError, match="one an image"):
        fit_of(lambda z, seeds: z.flatten(1), n=4, batch_size=2).round(0)
    with pytest.raises(InputError, match="even"):
        fit_of(lambda z, seeds: z, batch_size=3, objective=Objective(antithetic=True))
    with pytest.raises(InputError, match="replay"):
        Objective(replay=1, ratio_reference="initial")


def test_other_searches_spend_the_budget():
    a, spent = torch.ones(4), []

    def worth(z, seeds):
        spent.append(len(z))
        return -(z.flatten(1) - a).square().mean(1)

    best = best_noise(worth, (1, 1, 4), 80, 0)
    assert sum(spent) == 80
    assert float(worth(best[None], [0])) > -0.8
    spent.clear()
    assert float(cross_entropy(worth, (1, 1, 4), 240, 0).mean.detach().mean()) > 0.5
    assert sum(spent) == 240
