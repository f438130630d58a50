"""Schedule and chain, contrastive loss, balance of the KL, dreams, PPO in them, and dreams that are true."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from noiseworks.bench.testbeds.maze import make_layout, record
from noiseworks.bench.testbeds.maze.environment import MazeVectorEnv
from noiseworks.bench.testbeds.maze.simulation import MazeBatch, advance
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.diwa import (
    ChainPolicy,
    DreamPPO,
    FilteredPolicy,
    LatentEnv,
    SuccessClassifier,
    WorldDream,
    WorldModel,
    featurise,
    fit_model,
    fit_policy,
    fit_reward,
    tune,
)
from noiseworks.diwa.options import Dreaming, ModelFit, ModelSizes, PolicyFit, PolicySizes, RewardFit, Tuning
from noiseworks.diwa.policy import cosine_betas
from noiseworks.diwa.rewards import balance, contrastive_loss, figures, fit_classifier
from noiseworks.diwa.training import decisions_of, dreamt_success, starts_of
from noiseworks.diwa.world_model import balanced_kl, draw, model_loss
from noiseworks.kits.rl.denoising import clip_widths, denoising_discounts
from noiseworks.kits.rl.stepping import Stepper, evaluate_returns
from noiseworks.kits.training import make_fabric, open_run, rounds

CHAIN = PolicySizes(chunk=2, denoising_steps=6, policy_width=16, policy_layers=2, time_dim=8)
TINY = ModelSizes(deter=8, groups=2, classes=3, width=16)


def seeded(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def policy(tuned: int = 3, features: int = 5, sizes: PolicySizes = CHAIN) -> ChainPolicy:
    return seeded(lambda: ChainPolicy(features, 2, sizes, tuned))


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perturb(net, by: float = 0.05) -> None:
    for parameter in net.parameters():
        parameter.data.add_(by * torch.randn(parameter.shape, generator=source(9)))


# --- The chain ---


def test_released_schedule_and_ppo_constants():
    betas = cosine_betas(20)
    np.testing.assert_allclose(betas[:3], [0.007993, 0.020075, 0.032254], atol=1e-6)
    np.testing.assert_allclose(betas[-2:], [0.748476, 0.999], atol=1e-6)
    np.testing.assert_allclose((1 - betas).cumprod(0)[[0, 9]], [0.992007, 0.493844], atol=1e-6)
    widths = [0.001, 0.001187, 0.001447, 0.00181, 0.002317, 0.003025, 0.004013, 0.005391, 0.007315, 0.01]
    np.testing.assert_allclose(clip_widths(10), widths, atol=1e-6)
    np.testing.assert_allclose(
        denoising_discounts(10)[[0, 1, -2, -1]], [0.913517, 0.922745, 0.99, 1], atol=1e-6
    )
    assert clip_widths(1).tolist() == [0.01]


@pytest.mark.parametrize("tuned", [1, 3, 6])
def test_a_chain_has_one_sample_more_than_tuned_steps_and_gives_its_own_log_probs(tuned):
    one, feature = policy(tuned), torch.randn(4, 5, generator=source())
    chain = one.chain(feature, source(1))
    assert chain.shape == (4, tuned + 1, 2, 2)
    whole = one.log_prob(feature, chain)
    for j in range(tuned):
        single = one.pair_log_prob(feature, chain[:, j], chain[:, j + 1], torch.full((4,), j))
        torch.testing.assert_close(single, whole[:, j], rtol=1e-5, atol=1e-6)


def test_the_first_sample_of_a_chain_is_the_frozen_part_and_the_base_never_changes():
    one, feature = policy(3), torch.randn(4, 5, generator=source())
    before = one.chain(feature, source(1))
    perturb(one.tail)
    after = one.chain(feature, source(1))
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.allclose(before[:, 1], after[:, 1])
    assert torch.equal(one.chain(feature, source(1), base=True), before)


def test_acting_ends_without_noise():
    one, feature = policy(0), torch.randn(200, 5, generator=source())
    chain = one.chain(feature, source(1), quiet=True)
    assert chain.shape[1] == 1
    assert one.act(feature, source(1)).abs().max() <= 1
    loud = one.chain(feature, source(1))
    assert not torch.allclose(chain[:, -1], loud[:, -1])


def test_more_tuned_steps_than_there_are_are_refused():
    with pytest.raises(InputError, match="tuned_steps"):
        policy(7)


# --- The classifier ---


def test_contrastive_loss_of_two_orthogonal_classes():
    codes = torch.tensor([[2.0, 0], [3, 0], [0, 1], [0, 5]])
    labels = torch.tensor([0, 0, 1, 1])
    # As released the mean counts the code itself as well, whose cosine is no larger than its twin's.
    assert contrastive_loss(codes, labels).item() == pytest.approx(math.log(1 + 2 * math.exp(-2)), abs=1e-6)
    assert math.log(1 + 2 * math.exp(-2)) == pytest.approx(0.239545, abs=1e-6)


def test_classes_are_balanced_and_both_are_needed():
    features, labels = torch.arange(10.0)[:, None], torch.arange(10) >= 8
    rows, kept = balance(features, labels, source())
    assert kept.tolist() == [False, False, True, True]
    assert set(rows[2:, 0].tolist()) == {8.0, 9.0}
    with pytest.raises(InputError, match="no success"):
        balance(features, labels & False, source())
    with pytest.raises(InputError, match="no failure"):
        balance(features, labels | True, source())


def test_a_classifier_learns_what_can_be_told():
    draw_from = source()
    features = torch.randn(300, 4, generator=draw_from)
    labels = features[:, 0] > 0.5
    made = fit_classifier(features, labels, RewardFit(epochs=40, reward_rate=5e-3, reward_width=16))
    found = figures(made, features, labels)
    assert min(found) > 0.85


# --- The world model ---


def test_the_kl_pulls_the_prior_four_times_as_hard_and_has_its_own_value():
    posterior, prior = (torch.randn(3, 2, 4, generator=source(s), requires_grad=True) for s in (0, 1))
    loss = balanced_kl(posterior, prior).sum()
    p, q = posterior.log_softmax(-1), prior.log_softmax(-1)
    plain = (p.exp() * (p - q)).sum()
    torch.testing.assert_close(loss, 0.3 * plain)
    of_posterior, of_prior = torch.autograd.grad(plain, (posterior, prior), retain_graph=True)
    found = torch.autograd.grad(loss, (posterior, prior))
    torch.testing.assert_close(found[0], 0.3 * 0.2 * of_posterior)
    torch.testing.assert_close(found[1], 0.3 * 0.8 * of_prior)


def test_windows_are_followed_as_step_by_step():
    model = seeded(lambda: WorldModel(4, 2, TINY))
    obs, before = torch.randn(3, 5, 4, generator=source()), torch.randn(3, 5, 2, generator=source(1))
    states, posterior, prior = model.follow(obs, before, source(2))
    state, generator = model.begin(3), source(2)
    for t in range(5):
        state, one, other = model.observe(state, before[:, t], obs[:, t], generator)
        torch.testing.assert_close(states.feature[:, t], state.feature, atol=1e-5, rtol=0)
        torch.testing.assert_close(posterior[:, t], one, atol=1e-5, rtol=0)
        torch.testing.assert_close(prior[:, t], other, atol=1e-5, rtol=0)


def test_a_sharper_decoder_makes_divergence_cheaper_and_leaves_errors_alone():
    model = seeded(lambda: WorldModel(4, 2, TINY))
    obs, actions = torch.randn(3, 5, 4, generator=source()), torch.randn(3, 5, 2, generator=source(1))
    found = []
    for std in (1.0, 0.1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found.append(model_loss(model, obs, actions, std))
    assert torch.equal(found[0]["reconstruction"], found[1]["reconstruction"])
    torch.testing.assert_close(found[1]["kl"], 0.01 * found[0]["kl"])


def test_draws_are_one_hot_with_the_gradient_of_the_probabilities():
    logits = torch.tensor([[[0.0, 1.0, 2.0]]]).expand(4000, 1, 3).clone().requires_grad_()
    drawn = draw(logits, source())
    shares = drawn.detach().mean(0)
    torch.testing.assert_close(shares, torch.tensor([0.0, 1.0, 2.0]).softmax(-1), atol=0.03, rtol=0)
    assert set(drawn.detach().round(decimals=5).unique().tolist()) == {0.0, 1.0}
    (gradient,) = torch.autograd.grad(drawn[:, 0].sum(), logits)
    expected = torch.autograd.grad(logits.softmax(-1)[:, 0, 0].sum(), logits)[0]
    torch.testing.assert_close(gradient, expected)


PLAY = record("umaze", "navigate", 600, max_steps=30)
DEMOS = record("umaze", "expert", 240, max_steps=30)


def test_a_world_model_learns_to_see_and_a_policy_and_a_judge_follow():
    options = ModelFit(max_steps=150, batch_size=16, length=8, learning_rate=3e-3, device="cpu")
    model = fit_model(PLAY, ModelSizes(16, 4, 4, 32), options)
    episodes = featurise(model, DEMOS)
    states, actions, success = episodes[0]
    assert states.deter.shape == (len(actions) + 1, 16)
    assert success.any()
    seen = torch.from_numpy(DEMOS.observations[: len(actions)])
    error = (model.decode(states)[:-1] - seen).square().mean().sqrt()
    assert error < 0.7 * seen.std()
    table = decisions_of(episodes, 2)
    assert table["actions"].shape[1:] == (2, 2)
    assert torch.equal(table["actions"][len(actions) - 1, 0], table["actions"][len(actions) - 1, 1])
    made = fit_policy(episodes, CHAIN, PolicyFit(max_steps=5, batch_size=16, device="cpu"))
    judge, found = fit_reward(model, episodes, RewardFit(epochs=3, reward_rate=1e-3, reward_width=16))
    assert 0 <= found.recall <= found.recall + found.precision <= 2
    dreaming, options = Dreaming(4, 3, 6), Tuning(max_steps=2, tuned_steps=3, epochs=2, device="cpu")
    tuned, loop = tune(
        made, WorldDream(model, judge, starts_of(episodes), 4), dreaming, options, progress=False
    )
    assert loop.stepper.steps == 2 * 3 * 4
    env = MazeVectorEnv(2, "umaze", reward="step_cost", max_steps=5)
    acting = FilteredPolicy(model, tuned, 2)
    report = evaluate_returns(env, acting.act, 2, after=acting.after)
    assert report.steps == 10
    with pytest.raises(InputError, match="fitted on"):
        FilteredPolicy(seeded(lambda: WorldModel(4, 2, TINY)), tuned)


def test_data_of_another_task_are_refused():
    seen, following = DEMOS.observations[:, :3], DEMOS.next_observations[:, :3]
    narrow = replace(DEMOS, observations=seen, next_observations=following)
    model = seeded(lambda: WorldModel(4, 2, TINY))
    with pytest.raises(InputError, match="3 observations"):
        featurise(model, narrow)


# --- Dreams and PPO ---


class Straight:
    """A dream in which the first feature is the sum of the first actions, and 0.5 is a success."""

    features, action_dim = 5, 2

    def __init__(self, rows: int, broken_from: int = 10**9) -> None:
        self.place, self.resets, self.broken_from = torch.zeros(rows, 5), 0, broken_from

    def begin(self, rows, seed):
        self.resets += 1
        self.place[torch.as_tensor(rows)] = 0

    def step(self, actions):
        self.place[:, 0] += actions[:, 0]

    def feature(self):
        return self.place.clone()

    def reward(self):
        found = self.place[:, 0] >= 0.5
        scale = math.nan if self.resets > self.broken_from else 1.0
        return scale * found.float(), found


def loop(**changes) -> DreamPPO:
    options = {"tuned_steps": 3, "epochs": 2, "bc_coef": 0.0, "device": "cpu", "critic_first": 0, **changes}
    decisions = options.pop("decisions", 6)
    return DreamPPO(policy(3), LatentEnv(Straight(8), 8, 2, 4), Tuning(**options), decisions)


def test_before_an_update_the_ratio_is_one_and_without_advantage_only_the_critic_learns():
    one = loop()
    rollout, found = one.roll_out(0)
    rows = torch.arange(len(rollout.advantages))
    assert found["steps"] == one.stepper.steps == 48
    for positions in (None, rows % 3):
        loss = one.policy_loss(rollout, rows, positions)
        assert loss.kl.item() == pytest.approx(0, abs=1e-6)
        assert loss.clipped.item() == 0
        level = rollout._replace(advantages=torch.zeros(len(rows)))
        one.policy_loss(level, rows, positions).loss.backward()
        assert all(p.grad is None or p.grad.abs().max() == 0 for p in one.policy.tail.parameters())
    assert all(p.grad is None for p in one.policy.base.parameters())


def test_pairs_and_chains_have_the_same_loss_on_a_whole_batch():
    one = loop()
    rollout, _ = one.roll_out(0)
    perturb(one.policy.tail, 0.01)
    rows, steps = torch.arange(len(rollout.advantages)), 3
    chains = one.policy_loss(rollout, rows, None)
    pairs = one.policy_loss(rollout, rows.repeat_interleave(steps), torch.arange(steps).repeat(len(rows)))
    # The deviation over repeated advantages differs by the degrees of freedom.
    torch.testing.assert_close(pairs.loss, chains.loss, rtol=2e-2, atol=1e-5)
    torch.testing.assert_close(pairs.kl, chains.kl, rtol=1e-4, atol=1e-7)


def test_the_term_of_imitation_is_the_likelihood_of_the_base_and_flat_at_its_start():
    one = loop()
    feature = torch.randn(2000, 5, generator=source())
    chains = one.policy.chain(feature, source(1), base=True)
    loss = one.bc_loss(feature, chains)
    torch.testing.assert_close(loss, -one.policy.log_prob(feature, chains).mean())
    single = one.bc_loss(
        feature.repeat_interleave(3, 0), chains.repeat_interleave(3, 0), torch.arange(3).repeat(2000)
    )
    torch.testing.assert_close(single, loss)
    loss.backward()
    at_start = torch.cat([p.grad.flatten() for p in one.policy.tail.parameters()]).norm()
    one.policy.tail.zero_grad()
    perturb(one.policy.tail, 0.1)
    one.bc_loss(feature, chains).backward()
    away = torch.cat([p.grad.flatten() for p in one.policy.tail.parameters()]).norm()
    assert at_start < 0.15 * away


def test_dreams_are_learned_from():
    one = loop(actor_rate=3e-3, critic_rate=1e-2, epochs=5, decisions=8, batch_size=64)
    first = np.mean([one.roll_out(100 + i)[1]["success"] for i in range(3)])
    base = {k: v.clone() for k, v in one.policy.base.state_dict().items()}
    for step in range(45):
        one.round(step)
    last = np.mean([one.roll_out(200 + i)[1]["success"] for i in range(3)])
    assert last > first + 0.2
    assert all(torch.equal(base[k], v) for k, v in one.policy.base.state_dict().items())


class Lucky(Straight):
    """A dream in which the first row succeeds at once, again and again, and no other ever."""

    def reward(self):
        found = torch.arange(len(self.place)) == 0
        return found.float(), found


def test_success_in_dreams_counts_one_episode_of_each_row_however_short():
    options = Tuning(tuned_steps=3, device="cpu")
    one = DreamPPO(policy(3), LatentEnv(Lucky(8), 8, 2, 40), options, 6)
    assert one.roll_out(0)[1]["success"] == 1 / 8
    assert dreamt_success(policy(3), Lucky(4), 8).tolist() == [True, False, False, False]


def test_a_dream_env_is_a_vector_env_whose_ends_show_where_they_were():
    env = LatentEnv(Straight(2), 2, 2, 4)
    stepper = Stepper(env)
    assert stepper.reset(0).shape == (2, 5)
    actions = np.zeros((2, 2, 2), np.float32)
    actions[0, :, 0] = 0.3
    step = stepper.step(actions)
    assert step.terminated.tolist() == [True, False]
    assert step.reached[0, 0] == pytest.approx(0.6)
    assert step.observations[0, 0] == 0
    step = stepper.step(np.zeros((2, 2, 2), np.float32))
    assert step.truncated.tolist() == [False, True]
    with pytest.raises(InputError, match="multiple of the chunk"):
        LatentEnv(Straight(2), 2, 2, 5)


class TrueMaze:
    """The maze's own law of motion as a dream, with the starts that the real mazes have."""

    features, action_dim = 4, 2

    def __init__(self, rows: int) -> None:
        self.layout, self.rows = make_layout("open"), rows
        self.mazes = MazeBatch(rows, "open", reward="dense")
        self.states = self.mazes.states

    def begin(self, rows, seed):
        if seed is not None:  # later episodes are not looked at here
            every = np.arange(self.rows)
            self.mazes.reset(every, np.zeros_like(every), seed + every)
            self.states = self.mazes.states.copy()

    def step(self, actions):
        self.states = advance(self.layout.walls, self.states, np.clip(actions.numpy(), -1, 1))

    def feature(self):
        return torch.as_tensor(self.states.astype(np.float32))

    def reward(self):
        away = self.states[:, :2] - self.layout.centre(self.mazes.goals)
        distance = np.sqrt(away[:, 0] ** 2 + away[:, 1] ** 2)
        return torch.as_tensor(np.exp(-distance)), torch.zeros(self.rows, dtype=torch.bool)


def test_in_a_true_dream_diwa_is_dppo_in_the_real_environment():
    single = PolicySizes(chunk=1, denoising_steps=6, policy_width=16, policy_layers=2, time_dim=8)
    real = MazeVectorEnv(6, "open", reward="dense", max_steps=5, chunk=1)
    dream = LatentEnv(TrueMaze(6), 6, 1, 5)
    options = Tuning(tuned_steps=3, epochs=2, actor_rate=1e-3, device="cpu", critic_first=0, batch_size=16)
    both = [DreamPPO(policy(3, 4, single), env, options, 5) for env in (real, dream)]
    for step in range(3):
        found = [one.round(step) for one in both]
        assert found[0]["reward"] == pytest.approx(found[1]["reward"], abs=1e-6)
    for a, b in zip(both[0].policy.parameters(), both[1].policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    start = policy(3, 4, single).tail
    assert any(
        not torch.equal(a, b)
        for a, b in zip(both[0].policy.tail.parameters(), start.parameters(), strict=True)
    )


def test_wrong_features_and_empty_starts_are_refused():
    model = seeded(lambda: WorldModel(4, 2, TINY))
    with pytest.raises(InputError, match="no latent state"):
        WorldDream(model, SuccessClassifier(14, 8), model.begin(0), 2)
    with pytest.raises(InputError, match="classifier reads 9"):
        WorldDream(model, SuccessClassifier(9, 8), model.begin(1), 2)
    with pytest.raises(InputError, match="reads features"):
        DreamPPO(policy(3, 7), LatentEnv(Straight(2), 2, 2, 4), Tuning(tuned_steps=3), 2)


def test_a_reward_that_is_nan_stops_with_the_last_checkpoint(tmp_path):
    options = Tuning(max_steps=5, tuned_steps=3, epochs=1, device="cpu", checkpoint_every=0)
    one = DreamPPO(policy(3), LatentEnv(Straight(8, broken_from=4), 8, 2, 4), options, 2)
    with open_run(tmp_path / "run", {"fit": options}) as run:
        with pytest.raises(NonFiniteError, match="reward"):
            rounds(one, run=run, options=options, fabric=make_fabric(options), progress=False)
        assert torch.load(run.last, weights_only=True)["step"] >= 1
