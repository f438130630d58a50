"""Windows, scale, network, loss, policies and replay against brute force and closed forms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from noiseworks.core.errors import InputError
from noiseworks.kits.rl.offline import IQL, TD3BC, Batch, obs_statistics
from noiseworks.kits.rl.transitions import Transitions
from noiseworks.policy_guided_diffusion.denoiser import Denoiser, Normalise, denoising_loss
from noiseworks.policy_guided_diffusion.measures import dynamics_error, log_likelihood
from noiseworks.policy_guided_diffusion.model import TrajectoryDiffusion
from noiseworks.policy_guided_diffusion.options import Architecture, Guidance, Replay, Sampling
from noiseworks.policy_guided_diffusion.policies import as_log_prob
from noiseworks.policy_guided_diffusion.replay import SyntheticReplay
from noiseworks.policy_guided_diffusion.windows import Scaler, Trajectories, rows_of, split, windows_of

SMALL = Architecture(horizon=8, features=16)


def recording(lengths=(12, 9, 30), terminal=(True, False, True), seed=0):
    rng, parts = np.random.default_rng(seed), []
    for length, ended in zip(lengths, terminal, strict=True):
        seen = rng.normal(3, 2, (length + 1, 2))
        last = np.arange(length) == length - 1
        steps = (rng.uniform(-1, 1, (length, 2)), rng.normal(size=length))
        parts.append((seen[:-1], *steps, seen[1:], last & ended, last & (not ended)))
    return Transitions(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def test_windows_hold_what_the_rules_say():
    data = recording()
    windows = windows_of(data, 8, 4)
    rows = rows_of(data)
    starts = [int((rows == window[0]).all(1).nonzero()) for window in windows]
    inside = [*range(0, 5), *range(12, 14), *range(21, 44)]
    expected = (
        set(inside[::4]) | {0, 12, 21} | {4, 43}
    )  # each 4th, episodes' firsts, those that end in a terminal
    assert starts == sorted(expected - {13})  # the one that ends in a timeout
    assert not windows[:, :-1, -1].any()
    assert windows[:, -1, -1].sum() == 2


def test_rows_go_through_the_scale_and_back():
    data, scaler = recording(), Scaler(2, 2)
    data.actions[0] = 1.0, -1.0  # atanh of these is infinite
    windows = windows_of(data, 8, 1)
    scaler.fit(windows)
    x = scaler.encode(windows)
    torch.testing.assert_close(x.flatten(0, 1).mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.flatten(0, 1).std(0, correction=0), torch.ones(6), atol=1e-4, rtol=0)
    back = scaler.decode(x)
    torch.testing.assert_close(back.observations, windows[..., :2])
    torch.testing.assert_close(back.actions, windows[..., 2:4].tanh())
    torch.testing.assert_close(back.rewards, windows[..., 4], atol=1e-5, rtol=1e-5)
    assert torch.equal(back.dones, windows[..., 5] > 0)


def test_a_channel_that_never_changes_keeps_its_value():
    data = recording(terminal=(False, False, False))
    scaler, windows = Scaler(2, 2), windows_of(data, 8, 1)
    scaler.fit(windows)
    assert float(scaler.std[-1]) == 1
    assert not scaler.decode(scaler.encode(windows)).dones.any()


def test_held_out_episodes_are_whole_ones():
    data = recording(lengths=(10,) * 20, terminal=(True,) * 20)
    learned, held = split(data, 0.1, seed=3)
    assert (len(learned.ends), len(held.ends)) == (18, 2)
    assert split(data, 0.01, seed=3)[1] is None


def test_trajectories_give_one_transition_less_than_rows():
    made = Trajectories(
        torch.randn(3, 5, 2), torch.rand(3, 5, 1), torch.randn(3, 5), torch.zeros(3, 5, dtype=bool)
    )
    made.dones[1, 3] = True
    data = made.transitions()
    assert len(data) == 12
    np.testing.assert_array_equal(data.next_observations[:3], made.observations[0, 1:4].numpy())
    np.testing.assert_array_equal(np.flatnonzero(data.terminals), [7])
    np.testing.assert_array_equal(np.flatnonzero(data.timeouts), [3, 11])


@pytest.mark.parametrize("scope", ["step", "sequence"])
def test_normalisation_covers_a_step_or_the_window(scope):
    x = torch.randn(2, 16, 5)
    found = Normalise(16, scope)(x)
    if scope == "step":  # what group normalisation of (length, channels) rows gives
        rows = x.transpose(1, 2).reshape(10, 16)
        expected = F.group_norm(rows, 8, eps=1e-6).reshape(2, 5, 16).transpose(1, 2)
    else:
        expected = F.group_norm(x, 8, eps=1e-6)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("horizon", "levels"), [(8, 3), (2, 1), (12, 2)])
def test_network_keeps_the_shape_and_sees_the_whole_window(horizon, levels):
    net = Denoiser(6, Architecture(horizon=horizon, features=16, levels=levels)).net
    x = torch.randn(3, horizon, 6, requires_grad=True)
    out = net(x, torch.randn(3))
    assert out.shape == x.shape
    out[1].sum().backward()
    assert x.grad[1].abs().sum() > 0
    assert not x.grad[[0, 2]].any()


def test_preconditioning_and_weight_at_level_one():
    class Echo(torch.nn.Module):
        def forward(self, x, noise):
            self.seen = x, noise
            return torch.ones_like(x)

    denoiser = Denoiser(6, SMALL)
    denoiser.net = Echo()
    x = torch.full((1, 2, 6), 3.0)
    found = denoiser(x, torch.ones(1))
    torch.testing.assert_close(found, torch.full_like(x, 0.5 * 3 + 0.707107))
    torch.testing.assert_close(denoiser.net.seen[0], 0.707107 * x)
    assert float(denoiser.net.seen[1]) == 0
    loss = denoising_loss(lambda noisy, sigma: noisy, x, torch.ones(1), torch.full_like(x, 0.5))
    assert float(loss) == pytest.approx(2 * 0.25)  # w(1) = 2


def test_perfect_denoiser_of_normal_data_has_the_loss_of_its_variance():
    """E (D - x)^2 = σ^2 / (1 + σ^2), so that the weighted loss is 1 at every level."""
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 4000, 4, 6, generator=generator)
    sigma = torch.full((4000,), 0.7)
    loss = denoising_loss(lambda noisy, s: noisy / (1 + s[0] ** 2), x, sigma, noise)
    assert float(loss) == pytest.approx(1.0, abs=0.02)


def trained_state():
    torch.manual_seed(0)
    model = TrajectoryDiffusion(2, 2, SMALL)
    model.scaler.fit(windows_of(recording(), 8, 1))
    return model.eval()


def test_samples_depend_on_the_seed_and_guidance_leaves_the_noise_alone():
    model, quick = trained_state(), Sampling(steps=4, together=4)
    made = model.sample(6, sampling=quick, seed=1)
    again = model.sample(6, sampling=quick, seed=1)
    assert torch.equal(made.actions, again.actions)
    assert made.observations.shape == (6, 8, 2)
    assert (made.actions.abs() <= 1).all()
    free = model.sample(6, lambda obs: obs * 0, Guidance(coefficient=0.0), sampling=quick, seed=1)
    assert torch.equal(made.actions, free.actions)
    assert torch.equal(made.observations, free.observations)
    with pytest.raises(InputError, match=r"\(6,\)"):
        model.sample(6, lambda obs: obs, coefficients=torch.zeros(5))
    with pytest.raises(InputError, match="multiple of 4"):
        model.sample(6, sampling=Sampling(length=9))
    assert model.sample(1, sampling=Sampling(steps=4, length=12)).rewards.shape == (1, 12)


def test_learners_and_functions_are_policies():
    data = recording()
    statistics, generator = obs_statistics(data), torch.Generator().manual_seed(0)
    obs, action = torch.randn(4, 3, 2, generator=generator), torch.rand(4, 3, 2, generator=generator) - 0.5
    learner = TD3BC(2, *statistics, seed=1)
    expected = torch.distributions.Normal(learner.act(obs), 1.0).log_prob(action).sum(-1)
    torch.testing.assert_close(as_log_prob(learner)(obs, action), expected)
    learner = IQL(2, *statistics, seed=1)
    with torch.no_grad():
        learner.actor.log_std.fill_(-0.7)
    expected = torch.distributions.Normal(learner.act(obs), float(np.exp(-0.7))).log_prob(action).sum(-1)
    torch.testing.assert_close(as_log_prob(learner)(obs, action), expected)
    expected = torch.distributions.Normal(0.5 * obs, 0.3).log_prob(action).sum(-1)
    torch.testing.assert_close(as_log_prob(lambda seen: 0.5 * seen, std=0.3)(obs, action), expected)
    with pytest.raises(InputError, match="no policy"):
        as_log_prob(3)


def test_replay_mixes_rebuilds_and_goes_on():
    model, real = trained_state(), Batch.of(recording())
    options = Replay(pool=5, lifetime=2, refresh_every=3, batch_size=20, real_share=0.25)

    def make():
        return SyntheticReplay(
            model, lambda obs: obs * 0, real, options, Guidance(), Sampling(steps=4), seed=2
        )

    replay = make()
    batches = [replay(update) for update in range(7)]
    assert replay.built == 3
    assert len(replay.pools) == 2
    known = {tuple(row) for row in real.actions.tolist()}
    counts = [sum(tuple(row) in known for row in batch.actions.tolist()) for batch in batches]
    assert counts == [5] * 7
    resumed = make()
    for update in range(4):
        resumed(update)
    other = make()
    other.load_state_dict(resumed.state_dict())
    for update in range(4, 7):
        for a, b in zip(other(update), batches[update], strict=True):
            assert torch.equal(a, b)
    with pytest.raises(InputError, match="the model has 2 and 2"):
        SyntheticReplay(
            model, None, real._replace(actions=real.actions[:, :1]), options, Guidance(), Sampling()
        )


def test_measures():
    made = Trajectories(
        torch.randn(3, 5, 2), torch.rand(3, 5, 2), torch.randn(3, 5), torch.zeros(3, 5, dtype=bool)
    )
    log_prob = as_log_prob(lambda obs: obs, std=0.5)
    expected = torch.distributions.Normal(made.observations, 0.5).log_prob(made.actions).sum(-1).mean(1)
    torch.testing.assert_close(log_likelihood(made, log_prob), expected)
    moved = made.observations.clone()
    moved[:, 1:] = made.observations[:, :-1] + made.actions[:, :-1]  # a step from the row before it as it is
    straight = Trajectories(made.observations, made.actions, made.rewards, made.dones)
    error = dynamics_error(straight, lambda obs, action: obs + action)
    brute = (made.observations[:, :-1] + made.actions[:, :-1] - made.observations[:, 1:]).norm(dim=-1).mean(1)
    torch.testing.assert_close(error, brute.double(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Architecture(horizon=10), "multiple of 4"),
        (lambda: Architecture(features=20), "multiple of 8"),
        (lambda: Guidance(coefficient=-1.0), "coefficient"),
        (lambda: Sampling(steps=1), "steps"),
        (lambda: windows_of(recording(), 64, 1), "longest episode has 30"),
        (
            lambda: rows_of(
                recording(seed=1).__class__(**(recording().arrays() | {"actions": np.full((51, 2), 2.0)}))
            ),
            "divide",
        ),
    ],
)
def test_bad_input_is_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_the_average_of_a_short_run_has_left_its_first_weights():
    from noiseworks.policy_guided_diffusion.training import EMA_EVERY, TrajectoryModule

    model = trained_state()
    module, start = TrajectoryModule(model, 100), model.denoiser.net.last.weight.clone()
    with torch.no_grad():
        model.denoiser.net.last.weight.copy_(start + 1)
    for _ in range(500 // EMA_EVERY):
        module.average.update(model.denoiser)
    moved = (module.average.model.net.last.weight - start).mean()
    assert float(moved) == pytest.approx(1, abs=0.01)
