"""The schedule's numbers, the draft model, refinement, choice, and acting."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from noiseworks.bench.testbeds.maze import record
from noiseworks.bench.testbeds.maze.environment import MazeVectorEnv
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.core.params import guide, to_x0
from noiseworks.core.steps import ddpm_step
from noiseworks.kits.rl.stepping import VectorStep, evaluate_returns
from noiseworks.trajectory_diffuser import (
    Architecture,
    Fitting,
    Planning,
    PlanningPolicy,
    TrajectoryPlanner,
    fit_planner,
    make_draft,
    refine,
)
from noiseworks.trajectory_diffuser.refining import make_schedule, refiner_loss
from noiseworks.trajectory_diffuser.training import PlannerModule, make_planner, windows_of

SIZES = Architecture(
    horizon=8, draft_width=16, draft_layers=2, features=8, levels=2, num_steps=10, hidden=8, return_scale=10.0
)


def planner(**changes) -> TrajectoryPlanner:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = TrajectoryPlanner(3, 2, replace(SIZES, **changes))
    made.return_range.copy_(torch.tensor([0.0, 10.0]))
    return made.eval().requires_grad_(False)


def noise_source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- Schedule ---


def test_schedule_and_posterior_are_those_of_the_paper():
    schedule = make_schedule("linear", 100)
    at = torch.tensor([0, 1, 4, 19, 99])
    expected = torch.tensor([0.999, 0.997809, 0.993100, 0.945013, 0.347455], dtype=torch.float64)
    torch.testing.assert_close(schedule.alphas_cumprod[at], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(schedule.betas[4].item(), 0.00176768, atol=1e-8, rtol=0)
    level = schedule.level(4)
    torch.testing.assert_close(
        (level.alpha.item(), level.sigma.item()), (0.996544, 0.083068), atol=1e-6, rtol=0
    )
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    c1, c2, variance = [], [], []
    for t in range(5):
        levels = schedule.level(t), schedule.level(t - 1)
        step = ddpm_step(zero, one, *levels)
        c1.append(step.mean.item())
        c2.append(ddpm_step(one, zero, *levels).mean.item())
        variance.append(step.std.item() ** 2)
    np.testing.assert_allclose(c1, [1, 0.543803, 0.387039, 0.305921, 0.255516], atol=1e-6)
    np.testing.assert_allclose(c2, [0, 0.456197, 0.612961, 0.694079, 0.744483], atol=1e-6)
    expected = [0, 0.00054407, 0.00084883, 0.00109456, 0.00131717]
    np.testing.assert_allclose(variance, expected, atol=1e-8)


def test_vp_has_the_betas_of_ten_steps():
    betas = make_schedule("vp", 10).betas
    np.testing.assert_allclose(betas[:3], [0.057764, 0.146577, 0.227018], atol=1e-6)
    np.testing.assert_allclose(betas[-1], 0.613452, atol=1e-6)


class Gaussian:
    """A refiner whose data are N(0, I): the best estimate of the noise is sigma x."""

    def __init__(self) -> None:
        self.schedule = make_schedule("linear", 100)

    def epsilon(self, x, t, returns, guidance):
        return self.schedule.level(t).sigma.to(x.dtype) * x


def test_late_entry_moves_a_draft_by_a_sixteenth_of_a_deviation_and_no_more():
    draft = torch.full((1, 3, 20_000), 2.0, dtype=torch.float64)
    made = refine(Gaussian(), draft, torch.zeros(1), Planning(candidates=1), noise_source())[0, 0]
    assert torch.equal(made[0], draft[0, 0])  # the current state is put back
    assert made[1:].mean().item() == pytest.approx(2 * 0.996544, abs=2e-3)
    # Each step's posterior variance, carried on by the later steps' factors of the square root of alpha.
    variances = [0.00054407, 0.00084883, 0.00109456, 0.00131717]
    alphas = [1 - beta for beta in Gaussian().schedule.betas[:4].tolist()]
    total = sum(variance * math.prod(alphas[: t + 1]) for t, variance in enumerate(variances))
    assert made[1:].std().item() == pytest.approx(math.sqrt(total), rel=0.01)
    assert math.sqrt(total) == pytest.approx(0.0616, abs=1e-4)


class Cosines:
    """An exact refiner of curves of two frequencies, 5 with probability 0.8 and 3 with 0.2, in 16 phases."""

    def __init__(self) -> None:
        self.schedule = make_schedule("linear", 100)
        phase = torch.arange(16) * math.tau / 16
        time = torch.linspace(0, math.tau, 64)
        self.curves = torch.cat([torch.cos(f * time + phase[:, None]) for f in (5, 3)]).double()
        self.log_share = torch.tensor([0.8, 0.2]).log().repeat_interleave(16).double()

    def epsilon(self, x, t, returns, guidance):
        level, rows = self.schedule.level(t), x.flatten(0, 1)[..., 0]
        away = (rows[:, None] - level.alpha * self.curves).square().sum(-1)
        share = (self.log_share - away / (2 * level.sigma**2)).softmax(-1)
        return ((rows - level.alpha * share @ self.curves) / level.sigma).view_as(x)

    def distance(self, curves):
        return torch.cdist(curves, self.curves).amin(1)


def test_refinement_repairs_blurred_curves():
    data = Cosines()
    blur = torch.nn.functional.avg_pool1d(data.curves[:, None], 5, 1, 2, count_include_pad=False)[:, 0]
    blurred = blur + 0.1 * torch.randn(32, 64, generator=noise_source(), dtype=torch.float64)
    how = Planning(steps=5, candidates=1, guidance=1.0)
    made = refine(data, blurred[..., None], torch.zeros(32), how, noise_source(1))[:, 0, :, 0]
    assert (data.distance(made) < 0.5 * data.distance(blurred)).all()
    assert data.distance(made).mean() < 0.25 * data.distance(blurred).mean()


# --- Draft ---


def sequences(length: int, rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = noise_source(1)
    return torch.randn(rows, length, 3, generator=generator), torch.rand(rows, length, generator=generator)


@pytest.mark.parametrize("kind", ["transformer", "lstm", "gru", "rnn"])
def test_draft_sees_nothing_of_what_comes_later(kind):
    draft = planner(draft=kind).draft
    states, returns = sequences(6)
    before = draft(states, returns)
    states[:, 4] += 1
    after = draft(states, returns)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[:, :4], new[:, :4])
        assert not torch.allclose(old[:, 4:], new[:, 4:])


def test_the_released_draft_reads_its_own_answer():
    draft = planner(causal=False).draft
    states, returns = sequences(6)
    before = draft(states, returns)[0]
    states[:, 4] += 1
    assert not torch.allclose(before[:, 3], draft(states, returns)[0][:, 3])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("past", [1, 4, 7, 12])
def test_dreaming_with_memory_equals_reading_everything_anew(causal, past):
    draft = planner(causal=causal).draft
    states, returns = sequences(past)
    made = draft.dream(states, returns, 7)
    literal_states, literal_returns = states, returns
    for _ in range(7):
        state, wish = draft(literal_states[:, -7:], literal_returns[:, -7:])
        literal_states = torch.cat((literal_states, state[:, -1:]), 1)
        literal_returns = torch.cat((literal_returns, wish[:, -1:]), 1)
    torch.testing.assert_close(made, literal_states[:, past:], atol=1e-5, rtol=0)


def test_a_draft_that_explodes_stands_still():
    draft = make_draft(3, SIZES).eval()
    torch.nn.init.constant_(draft.state_head[2].bias, 100.0)
    states, returns = sequences(2)
    with torch.no_grad():
        made = draft.dream(states, returns, 3)
    assert torch.equal(made, states[:, -1:].expand(-1, 3, -1))


# --- Refinement and plans ---


def test_guidance_of_one_and_nought_are_the_two_branches():
    refiner = planner().refiner.double()
    x, t = torch.randn(2, 1, 8, 3, generator=noise_source(), dtype=torch.float64), 4
    index, returns = torch.full((2,), t), torch.tensor([0.3, 0.9], dtype=torch.float64)
    for w, shown in ((1.0, 1.0), (0.0, 0.0)):
        expected = refiner(x[:, 0], index, returns, torch.full((2,), shown))
        torch.testing.assert_close(refiner.epsilon(x, t, returns, w)[:, 0], expected, atol=1e-6, rtol=0)
    both = [refiner(x[:, 0], index, returns, torch.full((2,), s)) for s in (0.0, 1.0)]
    torch.testing.assert_close(
        refiner.epsilon(x, t, returns, 1.7)[:, 0], guide(*both, 1.7), atol=1e-6, rtol=0
    )


def literal_refine(refiner, draft, returns, steps, guidance, candidates, generator):
    """Refine as the paper's loop: all candidates from the start, two network calls a step."""
    x = draft[:, None].expand(-1, candidates, -1, -1).flatten(0, 1)
    wish, first = returns.repeat_interleave(candidates), x[:, :1]
    for t in range(steps - 1, -1, -1):
        index = torch.full((len(x),), t)
        none = refiner(x, index, wish, torch.zeros(len(x)))
        cond = refiner(x, index, wish, torch.ones(len(x)))
        x0 = to_x0(none + guidance * (cond - none), x, refiner.schedule.level(t), "epsilon")
        noise = torch.randn(len(draft), candidates, *draft.shape[1:], generator=generator) if t else None
        levels = refiner.schedule.level(t), refiner.schedule.level(t - 1)
        x = ddpm_step(x, x0, *levels, noise=None if noise is None else noise.flatten(0, 1)).sample
        x = torch.cat((first, x[:, 1:]), 1)
    return x.unflatten(0, (len(draft), candidates))


def test_shared_and_batched_refinement_equals_the_literal_loop():
    refiner, draft = planner().refiner, torch.randn(2, 8, 3, generator=noise_source(2))
    returns = torch.tensor([0.2, 0.8])
    made = refine(refiner, draft, returns, Planning(guidance=1.3, candidates=4), noise_source(3))
    expected = literal_refine(refiner, draft, returns, 5, 1.3, 4, noise_source(3))
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)
    assert torch.equal(made[:, :, 0], draft[:, None, 0].expand(-1, 4, -1))
    assert not torch.allclose(made[:, 0, 1:], made[:, 1, 1:])


def test_no_steps_play_the_draft_and_one_step_has_no_noise():
    refiner, draft = planner().refiner, torch.randn(1, 8, 3, generator=noise_source())
    assert torch.equal(
        refine(refiner, draft, torch.ones(1), Planning(steps=0, candidates=2)),
        draft[:, None].expand(1, 2, 8, 3),
    )
    once = refine(refiner, draft, torch.ones(1), Planning(steps=1, candidates=2))
    assert torch.equal(once[:, 0], once[:, 1])


def test_training_leaves_the_first_state_without_noise():
    seen = {}

    class Recorder:
        schedule = make_schedule("linear", 10)

        def __call__(self, x, t, returns, shown):
            seen["x"] = x
            return torch.zeros_like(x)

    states = torch.randn(2, 8, 3, generator=noise_source())
    noise = torch.randn(2, 8, 3, generator=noise_source(1))
    t = torch.tensor([3, 9])
    loss = refiner_loss(Recorder(), states, (torch.ones(2), torch.ones(2)), t, noise)
    alpha = Recorder.schedule.level(t).alpha.float()[:, None]
    torch.testing.assert_close(seen["x"][:, 0], alpha * states[:, 0], atol=1e-7, rtol=0)
    assert loss.item() == pytest.approx(noise[:, 1:].square().sum().item() / noise.numel(), rel=1e-5)
    scaled = seen["x"]
    refiner_loss(Recorder(), states, (torch.ones(2), torch.ones(2)), t, noise, clean_start=True)
    assert torch.equal(seen["x"][:, 0], states[:, 0])
    assert torch.equal(seen["x"][:, 1:], scaled[:, 1:])


def test_plans_start_where_the_body_is_and_count_their_calls():
    made = planner()
    states, returns = sequences(5)
    for how, calls in (
        (Planning(steps=3, candidates=2), (7, 3)),
        (Planning(steps=0), (7, 0)),
        (Planning(start="noise", steps=None, candidates=2), (0, 10)),
        (Planning(start="noise", steps=4, candidates=2), (0, 4)),
    ):
        plan = made.plan(states, 10 * returns, how, noise_source())
        assert plan.calls == calls
        torch.testing.assert_close(plan.states[:, 0], states[:, -1], atol=1e-6, rtol=0)
        assert plan.actions.shape == (2, 7, 2)
        assert bool((plan.actions >= -1).all() and (plan.actions <= 1).all())
        again = made.plan(states, 10 * returns, how, noise_source())
        assert torch.equal(plan.states, again.states)


def test_the_best_of_the_candidates_is_chosen_at_temperature_nought():
    plan = planner().plan(*sequences(3), Planning(steps=4, candidates=6, temperature=0), noise_source())
    assert torch.equal(plan.chosen, plan.values.argmax(1))


@pytest.mark.parametrize(
    ("how", "word"), [({"steps": 11}, "steps"), ({"start": "noise", "steps": 11}, "steps"), ({}, "finite")]
)
def test_wrong_plans_are_refused(how, word):
    states, returns = sequences(3)
    returns = returns if how else torch.full_like(returns, math.inf)
    with pytest.raises(InputError, match=word):
        planner().plan(states, returns, Planning(candidates=2, **how))


# --- Acting ---


def test_wishes_fall_with_rewards_down_to_the_floor_and_ends_forget():
    policy = PlanningPolicy(planner(), Planning(steps=1, candidates=1, target=9.0), 2)
    policy.act(np.zeros((2, 3), np.float32))
    flags = np.array([False, True])
    rewards = np.array([4.0, 4.0])
    step = VectorStep(None, None, rewards, flags, ~flags & flags, np.ones(2, bool), {})
    policy.after(step)
    assert policy.wish.tolist() == [5.0, 9.0]
    assert policy.length.tolist() == [1, 0]
    policy.after(replace(step, terminated=np.zeros(2, bool)))
    assert policy.wish[0] == 3.0
    policy.act(np.zeros((2, 3), np.float32))
    policy.after(replace(step, terminated=np.zeros(2, bool), truncated=flags))
    assert policy.length.tolist() == [2, 0]


def test_a_batch_of_environments_plans_as_each_would_alone():
    made, seen = planner(), np.random.default_rng(0).normal(size=(4, 3, 3)).astype(np.float32)
    together = PlanningPolicy(made, Planning(steps=0), 3)
    alone = [PlanningPolicy(made, Planning(steps=0), 1) for _ in range(3)]
    for step, obs in enumerate(seen):
        if step == 2:
            together.reset(np.array([True, False, False]))
            alone[0].reset(np.array([True]))
        expected = np.concatenate([one.act(obs[i : i + 1]) for i, one in enumerate(alone)])
        np.testing.assert_allclose(together.act(obs), expected, atol=1e-5)


def test_several_actions_of_a_plan_are_played():
    policy = PlanningPolicy(planner(), Planning(steps=0, execute=3), 1)
    obs = np.zeros((1, 3), np.float32)
    played = [policy.act(obs) for _ in range(4)]
    assert policy.plans == 2
    first = PlanningPolicy(planner(), Planning(steps=0, execute=3), 1)
    first.act(obs)
    np.testing.assert_array_equal(np.stack(played[:3], 1)[0], first.last.actions[0, :3])
    with pytest.raises(InputError, match="execute"):
        PlanningPolicy(planner(), Planning(execute=8))


def test_a_target_far_from_the_data_warns():
    with pytest.warns(UserWarning, match="target 13"):
        PlanningPolicy(planner(), Planning(target=13.0))


# --- Training ---

DATA = record("umaze", "expert", 400, max_steps=40)
MAZE = replace(SIZES, draft_layers=1)


def test_an_episode_of_l_steps_gives_l_minus_h_windows():
    made = make_planner(DATA, MAZE, 0)
    rows = windows_of(DATA, made)
    assert len(rows["states"]) == 10 * (40 - 8)
    assert rows["returns"].max().item() == pytest.approx(DATA.returns().max() / 10)


def test_the_average_is_a_copy_before_its_step():
    made = make_planner(DATA, MAZE, 0)
    module = PlannerModule(made, Fitting(average_from=4))
    for _ in range(2):
        for parameter in made.refiner.parameters():
            parameter.data.add_(1.0)
        module.average.update(made.refiner)
    first = next(made.refiner.parameters())
    assert torch.equal(next(module.average.model.parameters()), first)
    first.data.add_(1.0)
    module.average.update(made.refiner)
    expected = 0.995 * (first - 1) + 0.005 * first
    torch.testing.assert_close(next(module.average.model.parameters()), expected)


def test_losses_fall_and_the_draft_alone_leaves_the_rest():
    options = Fitting(max_steps=60, batch_size=32, learning_rate=3e-3, device="cpu", average_from=0)
    made = fit_planner(DATA, MAZE, options)
    states = windows_of(DATA, made)["states"][:64]
    before = make_planner(DATA, MAZE, 0).eval()

    def miss(one):
        returns = windows_of(DATA, made)["returns"][:64]
        return (one.draft(states[:, :-1], returns[:, :-1])[0] - states[:, 1:]).square().mean()

    assert miss(made) < 0.5 * miss(before)
    kept = {k: v.clone() for k, v in made.state_dict().items() if not k.startswith("draft")}
    fit_planner(DATA, MAZE, replace(options, max_steps=2, parts="draft"), planner=made)
    assert all(torch.equal(made.state_dict()[k], v) for k, v in kept.items())
    env = MazeVectorEnv(2, "umaze", max_steps=6)
    policy = PlanningPolicy(made, Planning(steps=2, candidates=2, execute=2), 2)
    report = evaluate_returns(env, policy.act, 2, after=policy.after)
    assert policy.plans == 6
    assert np.isfinite(report.returns).all()


def test_nan_in_the_data_stops_with_the_step():
    made = make_planner(DATA, MAZE, 0)
    made.critic[0].weight.data[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="step 1"):
        fit_planner(DATA, MAZE, Fitting(max_steps=2, batch_size=8, device="cpu"), planner=made)
