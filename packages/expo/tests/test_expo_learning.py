"""The base's schedule, edits and their entropy, the on-the-fly choice, the update, and acting."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from noiseworks.bench.testbeds.maze import record
from noiseworks.bench.testbeds.maze.environment import MazeVectorEnv
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.expo import (
    EditPolicy,
    ExpoLearner,
    GenerativeBase,
    HostBase,
    Learning,
    OnTheFlyPolicy,
    Proposals,
    pretrain,
    train,
)
from noiseworks.expo.base import BasePolicy, ZeroBase, vp_schedule
from noiseworks.expo.editing import REACHABLE, target_entropy
from noiseworks.expo.on_the_fly import draw_members
from noiseworks.expo.options import BaseSizes, Pretraining, Training
from noiseworks.expo.training import ActionBox, decisions_of
from noiseworks.kits.policies.native import NativePolicy, PolicyConfig
from noiseworks.kits.rl.offline import Batch
from noiseworks.kits.rl.replay import ReplayBuffer, mixed
from noiseworks.kits.rl.stepping import evaluate_returns
from noiseworks.kits.training import open_run
from torch import nn

SIZES = BaseSizes(width=16, blocks=1, time_dim=8, denoising_steps=3)
SMALL = Learning(envs=2, warmup=0, utd=2, critics=3, subset=2, critic_hidden=16, layers=2)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def base(**changes) -> GenerativeBase:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GenerativeBase(4, 2, replace(SIZES, **changes)).eval().requires_grad_(False)


def learner(own: BasePolicy | None = None, how: Proposals | None = None, **changes) -> ExpoLearner:
    own = own or base()
    own.requires_grad_(True)
    stats = torch.zeros(own.obs_dim), torch.ones(own.obs_dim)
    return ExpoLearner(own, stats, how or Proposals(n_base=3), replace(SMALL, **changes))


def batch(rows: int = 8, width: int = 2) -> Batch:
    draw = source(5)
    obs, following = (torch.randn(rows, 4, generator=draw) for _ in range(2))
    actions = 2 * torch.rand(rows, width, generator=draw) - 1
    return Batch(obs, actions, torch.randn(rows, generator=draw), following, torch.ones(rows))


class Quadratic(nn.Module):
    """Critics that all know Q = -|a - a*|^2."""

    members = 3

    def __init__(self, best: float) -> None:
        super().__init__()
        self.best = best

    def forward(self, obs, action, members=None):
        return (
            -(action - self.best)
            .square()
            .sum(-1)
            .expand(self.members if members is None else len(members), -1)
        )


class TwoPoints(BasePolicy):
    """A base that proposes -0.5 or 0.5."""

    obs_dim, action_dim, chunk = 4, 1, 1

    def sample(self, obs, n, generator=None):
        return torch.where(torch.rand(len(obs), n, 1, generator=generator) < 0.5, -0.5, 0.5)


# --- Base ---


def test_vp_betas_and_their_product():
    schedule = vp_schedule(10)
    betas = [
        0.057764,
        0.146577,
        0.227018,
        0.299878,
        0.365869,
        0.425641,
        0.479778,
        0.528813,
        0.573226,
        0.613452,
    ]
    product = [
        0.942236,
        0.804125,
        0.621574,
        0.435178,
        0.275960,
        0.158500,
        0.082455,
        0.038852,
        0.016581,
        0.006409,
    ]
    np.testing.assert_allclose(schedule.betas, betas, atol=1e-6)
    np.testing.assert_allclose(schedule.alphas_cumprod, product, atol=1e-6)


@pytest.mark.parametrize("kind", ["ddpm", "flow"])
def test_imitation_comes_near_the_two_modes_of_the_data(kind):
    draw = np.random.default_rng(0)
    signs = np.sign(draw.normal(size=(400, 1)))
    data = record("open", "expert", 400)
    data = replace(data, actions=(0.5 * signs + 0.02 * draw.normal(size=(400, 2))).astype(np.float32))
    sizes = BaseSizes(kind=kind, width=32, blocks=1, time_dim=16, denoising_steps=10)
    made = pretrain(data, sizes, Pretraining(max_steps=400, batch_size=128, learning_rate=3e-3, device="cpu"))
    drawn = made.sample(torch.from_numpy(data.observations[:64]), 4, source())
    assert (drawn.abs() - 0.5).abs().median() < 0.15
    assert 0.25 < (drawn > 0).float().mean() < 0.75


def test_rewards_play_no_part_in_the_base():
    one, other = learner(), learner()
    rows = batch()
    one.base_step(rows)
    other.base_step(rows._replace(rewards=rows.rewards.flip(0)))
    for a, b in zip(one.base.parameters(), other.base.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_native_policy_is_a_base_in_its_own_units():
    sizes = {"obs_dim": 4, "action_dim": 2, "horizon": 2, "n_obs_steps": 1, "n_action_steps": 2}
    policy = NativePolicy(
        PolicyConfig(**sizes, num_train_timesteps=10, down_dims=(8,), step_embed_dim=8)
    ).eval()
    host = HostBase(policy, steps=2, bounds=(-2.0, 2.0))
    drawn = host.sample(torch.zeros(3, 4), 5, source())
    assert drawn.shape == (3, 5, 4)
    wide = HostBase(policy, steps=2).sample(torch.zeros(3, 4), 5, source())
    torch.testing.assert_close(drawn, wide / 2)
    assert host.loss(torch.zeros(3, 4), drawn[:, 0], source()).requires_grad


# --- Edits ---


def test_edits_stay_within_their_scale_and_leave_masked_dimensions():
    edit = EditPolicy(4, 6, 0.3, masked=(1,), chunk=3, sizes=(16, 1))
    action = 2 * torch.rand(50, 6, generator=source()) - 1
    made, _ = edit(torch.randn(50, 4), action, 5 * torch.randn(50, 6))
    assert (made - action).abs().max() <= 0.3 + 1e-6
    assert torch.equal(made[:, 1::2], action[:, 1::2])
    assert (made - action)[:, ::2].abs().max() > 0.2
    with pytest.raises(InputError, match="masked"):
        EditPolicy(4, 6, 0.3, masked=(3,), chunk=2)


def test_the_scale_takes_its_logarithm_from_the_density():
    wide, narrow = EditPolicy(2, 3, 1.0), EditPolicy(2, 3, 0.15)
    narrow.load_state_dict(wide.state_dict())
    args = torch.zeros(1, 2), torch.zeros(1, 3), torch.randn(1, 3)
    difference = narrow(*args)[1] - wide(*args)[1]
    assert difference.item() == pytest.approx(5.691360, abs=1e-5)


def test_the_largest_entropy_and_the_scale_that_reaches_the_released_target():
    expected = {0.05: -2.302585, 0.15: -1.203973, 0.3: -0.510826, 0.5: 0.0}
    for scale, entropy in expected.items():
        assert math.log(2 * scale) == pytest.approx(entropy, abs=1e-6)
    assert pytest.approx(0.303265, abs=1e-6) == REACHABLE
    assert target_entropy(3, 0.15, "reference") == -1.5
    assert target_entropy(3, 0.15, "corrected") == pytest.approx(-1.5 + 3 * math.log(0.15))
    with pytest.warns(UserWarning, match="without bound"):
        learner(how=Proposals(edit_scale=0.15), target_entropy="reference")


def test_the_released_entropy_target_lets_the_temperature_grow():
    with pytest.warns(UserWarning, match="without bound"):
        released = learner(
            how=Proposals(n_base=2, edit_scale=0.15), target_entropy="reference", learning_rate=0.03
        )
    corrected = learner(how=Proposals(n_base=2, edit_scale=0.15), learning_rate=0.03)
    for one in (released, corrected):
        for _ in range(60):
            one.edit_step(batch())
    assert released.alpha > 2 > 1 > corrected.alpha


# --- The on-the-fly policy ---


def test_the_choice_is_worth_as_much_as_any_candidate_and_grows_with_them():
    before = torch.full((20,), -math.inf)
    policy = OnTheFlyPolicy(base(), EditPolicy(4, 2, 0.3), Quadratic(0.4), Proposals(n_base=8))
    obs = torch.randn(20, 4, generator=source(1))
    made = policy.candidates(obs, None, source())
    for n_base, n_edit in ((1, 0), (4, 0), (8, 0), (8, 3), (8, 8)):
        nested = torch.cat((made[:, :n_base], made[:, 8 : 8 + n_edit]), 1)
        value = -(policy.choose(obs, nested, source(2)) - 0.4).square().sum(-1)
        assert torch.equal(value, -(nested - 0.4).square().sum(-1).amin(1))
        assert bool((value >= before).all())
        before = value


def test_a_single_candidate_is_the_base_bit_for_bit_and_asks_no_critic():
    policy = OnTheFlyPolicy(base(), EditPolicy(4, 2, 0.3), None, Proposals(n_base=1, n_edit=0))
    obs = torch.randn(5, 4, generator=source(1))
    made = policy.choose(obs, policy.candidates(obs, None, source()))
    assert torch.equal(made, base().sample(obs, 1, source())[:, 0])


def test_tiny_edits_are_the_best_of_the_base():
    policy = OnTheFlyPolicy(base(), EditPolicy(4, 2, 1e-7), Quadratic(0.2), Proposals(n_base=6))
    obs = torch.randn(5, 4, generator=source(1))
    drawn = base().sample(obs, 6, source())
    best = drawn[torch.arange(5), (drawn - 0.2).square().sum(-1).argmin(1)]
    made = policy.choose(obs, policy.candidates(obs, None, source()), source(2))
    torch.testing.assert_close(made, best, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("peak", "low", "high"), [(0.6, 0.55, 0.62), (0.9, 0.6, 0.65)])
def test_bandit_edits_leave_the_base_by_their_scale_and_choice_alone_does_not(peak, low, high):
    made = learner(TwoPoints(), Proposals(n_base=8, edit_scale=0.15), train_base=False, learning_rate=0.01)
    made.critics = made.policy.critics = Quadratic(peak)
    obs = torch.zeros(64, 4)
    for step in range(300):
        actions = TwoPoints().sample(obs, 1, source(step))[:, 0]
        made.edit_step(Batch(obs, actions, torch.zeros(64), obs, torch.ones(64)))
    played = made.policy.choose(obs, made.policy.candidates(obs, None, source()), source(1))
    assert low < played.mean().item() <= high
    assert played.max().item() <= 0.65 + 1e-6
    made.policy.proposals = replace(made.proposals, keep="base")
    alone = made.policy.choose(obs, made.policy.candidates(obs, None, source()), source(1))
    assert alone.max().item() == 0.5


def test_soft_choice_prefers_high_values():
    policy = OnTheFlyPolicy(
        TwoPoints(), EditPolicy(4, 1), Quadratic(0.5), Proposals(select="soft", soft_scale=2)
    )
    pair = torch.tensor([[[-0.5], [0.5]]]).expand(4000, -1, -1)
    share = (policy.choose(torch.zeros(4000, 4), pair, source()) > 0).float().mean().item()
    assert share == pytest.approx(1 / (1 + math.exp(-2)), abs=0.02)


# --- The update ---


def literal_update(one: ExpoLearner, rows: Batch, noise: list[torch.Tensor]) -> None:
    """Algorithm 1 with candidates drawn anew before each critic step."""
    for part, candidates in zip(
        torch.arange(len(rows.rewards)).view(one.learning.utd, -1), noise, strict=True
    ):
        last = rows.rows(part)
        one.critic_step(last, candidates)
    one.base_step(last)
    one.edit_step(last)


def test_one_call_for_all_candidates_equals_a_call_before_each_critic_step():
    fast, literal = learner(), learner()
    rows = batch()
    # The same base and noise give the same candidates whenever they are drawn: neither changes in between.
    state = fast.generator.get_state()
    drawn = literal.next_candidates(rows.next_obs)
    fast.generator.set_state(state)
    fast.update(rows)
    literal_update(literal, rows, list(drawn.view(2, 4, *drawn.shape[1:])))
    for a, b in zip(fast.parameters(), literal.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_targets_pass_over_time_limits_and_stop_at_ends():
    one = learner()
    rows = batch()
    drawn = one.next_candidates(rows.next_obs)
    state = one.generator.get_state()
    whole = one.target(rows, drawn)
    one.generator.set_state(state)
    masks = torch.tensor([0.0, 1.0]).repeat(4)
    cut = one.target(rows._replace(masks=masks), drawn)
    torch.testing.assert_close(cut, torch.where(masks > 0, whole, rows.rewards))


def test_edit_steps_leave_critics_and_base_as_they_are():
    one = learner()
    before = {k: v.clone() for k, v in one.state_dict().items()}
    one.edit_step(batch())
    changed = {k for k, v in one.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(k.startswith(("edit.", "policy.edit.", "log_alpha")) for k in changed)
    assert all(p.grad is None for p in one.critics.parameters())


def test_the_average_begins_as_a_copy():
    one = learner()
    for a, b in zip(one.base.parameters(), one.policy.base.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a is not b


def test_some_members_are_those_members():
    one = learner()
    rows = batch()
    members = draw_members(3, 2, source())
    torch.testing.assert_close(
        one.critics(rows.obs, rows.actions, members), one.critics(rows.obs, rows.actions)[members]
    )


# --- Acting and rounds ---


def test_replay_keeps_the_last_and_mixes_shares():
    buffer = ReplayBuffer(6, 4, 2)
    rows = batch(4)
    buffer.add(rows)
    buffer.add(rows._replace(rewards=torch.arange(4.0)))
    assert len(buffer) == 6
    assert set(buffer.rows.rewards[:2].tolist()) == {2.0, 3.0}
    other = ReplayBuffer(6, 4, 2)
    other.load_state_dict(buffer.state_dict())
    assert torch.equal(other.sample(5, source()).obs, buffer.sample(5, source()).obs)
    recorded = rows._replace(rewards=torch.full((4,), 77.0))
    made = mixed(buffer, recorded, 40, 0.25, source())
    assert (made.rewards == 77).sum() == 10


def test_rounds_count_decisions_and_steps_and_learn():
    env = MazeVectorEnv(2, "open", reward="step_cost", max_steps=5, chunk=2)
    options = Training(max_steps=2, batch_size=4, device="cpu")
    made, loop = train(base(chunk=2), env, None, (Proposals(n_base=2), SMALL, options), progress=False)
    assert loop.decisions == 2 * 2 * 3
    assert loop.steps == 2 * 2 * 5
    report = evaluate_returns(env, made.policy.act, 2)
    assert np.isfinite(report.returns).all()


def test_a_zero_base_with_edits_as_large_as_the_box_is_an_actor():
    zero = ZeroBase(4, 2)
    one = learner(
        zero, Proposals(n_base=1, edit_scale=1.0, keep="edited"), train_base=False, edit_base="policy"
    )
    made = one.policy.candidates(torch.zeros(3, 4), None, source())
    assert made.shape == (3, 1, 2)
    one.update(batch())


def test_a_reward_that_is_nan_stops_with_the_last_checkpoint(tmp_path):
    class Broken(MazeVectorEnv):
        rounds = 0

        def reset(self, **settings):
            type(self).rounds += 1
            return super().reset(**settings)

        def step(self, actions):
            seen, reward, *rest = super().step(actions)
            return (seen, reward * math.nan if self.rounds > 2 else reward, *rest)

    env = Broken(2, "open", reward="step_cost", max_steps=4, chunk=2)
    options = Training(max_steps=5, batch_size=4, device="cpu", checkpoint_every=0)
    with open_run(tmp_path / "run", {"fit": options}) as run:
        with pytest.raises(NonFiniteError, match="reward"):
            train(base(chunk=2), env, None, (Proposals(n_base=2), SMALL, options), run, progress=False)
        assert torch.load(run.last, weights_only=True)["step"] == 2


def test_wrong_boxes_and_data_are_refused():
    env = MazeVectorEnv(1, "open", chunk=3)
    with pytest.raises(InputError, match="chunks of 2"):
        ActionBox.of(env, 2)
    data = record("open", "expert", 40)
    with pytest.raises(InputError, match="bounds"):
        decisions_of(replace(data, actions=3 * data.actions), 1)
    narrow, pairs = replace(data, actions=data.actions[:, :1]), MazeVectorEnv(1, "open", chunk=2)
    with pytest.raises(InputError, match="decisions"):
        train(base(chunk=2), pairs, narrow, (Proposals(), SMALL, Training()))
    with pytest.raises(InputError, match="utd"):
        learner().update(batch(3))
