"""Equations of the paper against closed forms, loops, and the limits in which the method is its baseline."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.core.steps import ddpm_step
from noiseworks.dip import (
    Architecture,
    DipSampler,
    Goals,
    ImplicitPolicy,
    MotionAgent,
    MotionModel,
    RewardSet,
    Sampling,
    Waypoint,
)
from noiseworks.dip.agent import aim, arrived, check_plan
from noiseworks.dip.baselines import make_agent
from noiseworks.dip.evaluation import Judged, generators_of, unblended
from noiseworks.dip.network import motion_schedule
from noiseworks.dip.options import Moving
from noiseworks.dip.rewards import PAPER, Setting, penetration, skating, smoothness, smoothness_symmetric
from noiseworks.dip.sampling import Round, draw
from noiseworks.kits.motion import Frame, ProcBody, Room

F64 = torch.float64
TINY = Architecture(width=16, layers=2, heads=2, feedforward=16)
BODY = ProcBody()


def model(control=True, frames=24, seed=0, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = MotionModel(replace(TINY, **changes), frames=frames)
        made = made.with_branch() if control else made
    return made.eval().requires_grad_(False)


def standing(batch=1, frames=24):
    motion = torch.zeros(batch, frames, 69)
    motion[..., 1:3] = np.pi / 2**0.5
    motion[..., 66:] -= BODY.root
    return motion


def setting(batch=1, frames=24, wanted=((5, 0),), place=(0.0, 1.0, 0.0), action=0, scene=None, flat=False):
    points, mask = torch.zeros(batch, frames, 22, 3), torch.zeros(batch, frames, 22, dtype=torch.bool)
    for frame, joint in wanted:
        points[:, frame, joint] = torch.tensor(place)
        mask[:, frame, joint] = True
    none = torch.zeros_like(mask)
    goals = Goals(points, none if flat else mask, mask if flat else none)
    home = Frame(torch.eye(3).expand(batch, 3, 3), torch.tensor((0.0, 0.0, 0.95)).expand(batch, 3))
    return Setting(goals, home, torch.full((batch,), action), 20.0, scene, BODY.foot_markers)


class Translation:
    """A body that is its translation alone, whatever the joint."""

    root, foot_markers, buttocks = torch.zeros(3), tuple(range(6)), (6, 7)

    def __call__(self, motion):
        joints = motion[..., None, 66:].expand(*motion.shape[:-1], 22, 3)
        return joints, joints[..., :8, :]


# --- schedule ---


def test_schedule_and_posterior():
    schedule = motion_schedule()
    alphas = schedule.alphas_cumprod
    assert alphas[[0, 500]].tolist() == pytest.approx([0.99995872, 0.49228517], rel=1e-7)
    assert float(alphas[999]) == pytest.approx(2.4289e-9, rel=1e-4)
    zero, one = torch.zeros((), dtype=F64), torch.ones((), dtype=F64)

    def step(t, x, x0):
        return ddpm_step(x, x0, schedule.level(t), schedule.level(t - 1))

    variances = [float(step(t, zero, zero).std) ** 2 for t in range(1000)]
    for t, value in ((1, 2.179e-5), (500, 3.146e-3), (900, 1.9732e-2), (999, 0.9990)):
        assert variances[t] == pytest.approx(value, rel=2e-4)
    above = np.flatnonzero(np.array(variances) >= 0.01)
    assert (int(above[0]), len(above)) == (807, 193)
    assert float(step(500, zero, one).mean) == pytest.approx(0.00436787, rel=1e-5)
    assert float(step(500, one, zero).mean) == pytest.approx(0.99535628, rel=1e-7)


# --- network ---


def test_a_new_branch_changes_nothing_and_hints_are_told_by_the_mask():
    base, made = model(control=False), model()
    x, t = draw(standing(2), generators_of(0, 2)), torch.tensor((3, 700))
    action = torch.tensor((0, 1))
    points, mask = torch.randn(2, 24, 22, 3), torch.zeros(2, 24, 22, dtype=torch.bool)
    mask[:, 4, 0] = True
    plain = base(x, t, action)
    assert torch.equal(made(x, t, action, made.embed(points, mask)), plain)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for layer in (*made.branch.out, made.branch.hint[-1]):
            torch.nn.init.normal_(layer.weight, std=0.3)
    hinted = made(x, t, action, made.embed(points, mask))
    assert not torch.allclose(hinted, plain)
    assert torch.equal(made(x, t, action), plain)  # without a hint the branch is left out
    assert (made.embed(points, torch.zeros_like(mask)) == 0).all()
    points[:, 4, 0] = 0.0
    assert (made.embed(points, mask)[:, 4] != 0).any() or (made.branch.hint(torch.zeros(66)) == 0).all()
    points[:, 5] += 1.0  # masked out
    assert torch.equal(
        made.embed(points, mask), made.embed(torch.where(mask[..., None], points, 0 * points), mask)
    )


def test_layers_see_numbers_of_deviation_one_at_any_noise():
    made, clips = (
        model(control=False),
        3 * torch.randn(200, 24, 69, generator=torch.Generator().manual_seed(0)) + 2,
    )
    made.standardise(clips)
    noise = torch.randn(clips.shape, generator=torch.Generator().manual_seed(1))
    for t in (5, 500, 990):
        alphas = motion_schedule().alphas_cumprod[t].float()
        seen = made.scaled(alphas.sqrt() * clips + (1 - alphas).sqrt() * noise, torch.full((200,), t))
        assert seen.mean().abs() < 0.01
        assert seen.std((0, 1)).tolist() == pytest.approx([1.0] * 69, abs=0.05)
    assert model(control=False).std.tolist() == [1.0] * 69  # a new model has the paper's units


# --- rewards ---


def test_means_count_as_often_as_goals_do():
    frames = 160
    here = setting(2, frames, action=0)
    motion = standing(2, frames) + 0.05 * torch.randn(
        2, frames, 69, generator=torch.Generator().manual_seed(0)
    )
    joints, markers = BODY(motion)
    found = RewardSet({"walk": {"goal": 1.0, "skating": 1e-3}})(joints, markers, here)
    slide = skating(joints, markers, here)
    for b in range(2):
        total = 0.0
        for f in range(frames):
            for j in range(22):
                goal = (
                    float((joints[b, f, j] - here.goals.points[b, f, j]).norm())
                    if here.goals.mask[b, f, j]
                    else 0
                )
                total += goal + 1e-3 * float(slide[b])
        assert float(found[b]) == pytest.approx(total, rel=1e-4)
    assert frames * 22 == 3520


def test_sliding_is_free_below_half_a_metre_a_second():
    here = setting()
    for speed, expected in ((0.45, 0.0), (0.8, 0.3)):
        motion = standing()
        motion[0, :, 66] += speed / 20.0 * torch.arange(24)
        assert float(skating(*BODY(motion), here)) == pytest.approx(expected, abs=1e-4)


def test_penetration_is_free_for_three_centimetres():
    box = torch.tensor([[[0.0, 0.0, -0.5, 9.0, 9.0, 0.5, 0.0]]])
    room = Room(torch.tensor([[50.0, 50.0]]), box)
    motion = standing()
    for down, free in ((0.02, True), (0.08, False)):
        moved = motion.clone()
        moved[..., 68] -= down
        here = replace(setting(scene=room), frame=Frame(torch.eye(3)[None], torch.tensor([[0.0, 0.0, 0.97]])))
        assert (float(penetration(*BODY(moved), here)) == 0) == free


def test_smoothness_is_one_sided_as_released():
    joints = torch.zeros(1, 6, 22, 3)
    joints[:, 3:, :, 0] = -1.0  # accelerations of -400, then +400 m/s^2
    here = setting()
    both, one = smoothness_symmetric(joints, joints, here), smoothness(joints, joints, here)
    assert float(both) == pytest.approx(2 * float(one))
    assert float(one) == pytest.approx(350.0 / (4 * 3))


def test_a_reward_that_is_not_finite_is_named():
    rewards = RewardSet(
        {"walk": {"bad": 1.0}}, {"bad": lambda joints, markers, here: joints.new_full((1,), torch.nan)}
    )
    with pytest.raises(NonFiniteError, match="bad"):
        rewards(*BODY(standing()), setting())
    with pytest.raises(InputError, match="unknown action 'swim'"):
        RewardSet({"swim": {}})
    with pytest.raises(InputError, match="unknown reward 'speed'"):
        RewardSet({"walk": {"speed": 1.0}})


# --- policy ---


def policy(body=BODY, weights=None, **changes):
    return ImplicitPolicy(RewardSet(weights or {"walk": {"goal": 1.0}}), body, Sampling(**changes))


@pytest.mark.parametrize(("frames", "length"), [(1, 0.2), (160, 0.00125)])
def test_steps_have_a_fixed_length(frames, length):
    direct = policy(Translation(), way="direct", policy_steps=1)
    here = setting(1, 160, [(f, 0) for f in range(frames)], (3.0, 4.0, 0.0))
    motion = torch.zeros(1, 160, 69)
    moved = direct.optimise(motion, 1e-3, lambda x: x, here)
    assert moved[0, 0, 66:].tolist() == pytest.approx([0.6 * length, 0.8 * length, 0.0], rel=1e-3)
    assert (moved[0, frames:] == 0).all()
    far = direct.optimise(motion, 1e-3, lambda x: x, here, steps=120)
    if frames == 1:
        assert float((far[0, 0, 66:] - torch.tensor((3.0, 4.0, 0.0))).norm()) <= 0.2 + 1e-5
    larger = direct.optimise(motion, 0.04, lambda x: x, here)
    assert torch.allclose(larger, 4 * moved, rtol=1e-4)


def test_inversion_is_the_gradient_through_the_denoiser():
    here = setting()
    mu = standing() + 0.1 * torch.randn(1, 24, 69, generator=torch.Generator().manual_seed(0))
    _, through = policy(way="dip").slope(mu, lambda x: 0.7 * x, here)
    _, direct = policy(way="direct").slope(0.7 * mu, lambda x: x, here)
    assert torch.allclose(through, 0.7 * direct, atol=1e-6)
    assert direct.abs().max() > 0


def test_the_policy_rests_where_nothing_is_wanted_and_needs_a_goal():
    here = setting(2)
    mu = torch.zeros(2, 24, 69)
    mu[1, 5, 66:] = torch.tensor((0.0, 1.0, 0.0))
    moved = policy(Translation(), way="direct", tolerance=1e-3).optimise(mu, 0.0, lambda x: x, here)
    assert torch.equal(moved[1], mu[1])
    assert not torch.equal(moved[0], mu[0])
    with pytest.raises(InputError, match="at least one goal"):
        policy().optimise(mu, 0.0, lambda x: x, setting(2, wanted=()))


def test_gradients_agree_with_differences():
    body = ProcBody().double()
    room = Room(
        torch.tensor([[3.0, 3.0]], dtype=F64),
        torch.tensor([[[0.2, 0.3, 0.5, 0.4, 0.4, 0.5, 0.2]]], dtype=F64),
    )
    here = setting(1, 6, [(2, 0), (4, 20)], action=1, scene=room)
    weights = {"sit": {**PAPER["sit"], "foot_contact": 0.1, "body_contact": 0.1}}
    judge = policy(body, weights, way="direct")
    mu = standing(1, 6).double() + 0.05 * torch.randn(
        1, 6, 69, generator=torch.Generator().manual_seed(0), dtype=F64
    )
    _, slope = judge.slope(mu, lambda x: x, here)
    for index in ((0, 2, 67), (0, 4, 48), (0, 3, 1)):
        up, down = mu.clone(), mu.clone()
        up[index] += 1e-6
        down[index] -= 1e-6
        difference = (judge.slope(up, lambda x: x, here)[0] - judge.slope(down, lambda x: x, here)[0]) / 2e-6
        assert float(slope[index]) == pytest.approx(float(difference), rel=1e-3, abs=1e-4)


# --- sampling ---


def a_round(here, batch=1, frames=24):
    empty = torch.zeros(batch, frames, 69)
    return Round(here, empty, empty.bool(), here.goals.points, here.goals.mask)


def test_without_policy_and_key_poses_it_is_ancestral_sampling():
    made, options = model(), Sampling(steps=6, policy_steps=0)
    sampler = DipSampler(made, policy(policy_steps=0), options)
    found = sampler.sample(a_round(setting()), generators_of(3, 1))
    (generator,) = generators_of(3, 1)
    schedule, x = motion_schedule(), None
    x = torch.randn(24, 69, generator=generator)[None]
    hint = made.embed(setting().goals.points, setting().goals.mask)
    for t, s in zip(sampler.grid[:-1], sampler.grid[1:], strict=True):
        clean = made(x, torch.tensor([t]), torch.tensor([0]), hint)
        step = ddpm_step(x, clean, schedule.level(t), schedule.level(s))
        noise = torch.randn(24, 69, generator=generator)[None] if s >= 0 else 0.0
        x = step.mean.to(x) + step.std.to(x) * noise
    assert torch.equal(found, x)
    assert sampler.grid[0] == 999
    assert sampler.grid[-1] == -1


def test_gradient_steps_have_the_length_of_the_whole_schedule():
    judge, seen = policy(policy_steps=1), []
    optimise = ImplicitPolicy.optimise

    class Watched(ImplicitPolicy):
        def optimise(self, mu, variance, *rest, **named):
            seen.append(variance)
            return optimise(self, mu, variance, *rest, **named)

    watched = Watched(judge.rewards, judge.body, judge.options)
    DipSampler(model(), watched, Sampling(steps=4, policy_steps=1)).sample(
        a_round(setting()), generators_of(0, 1)
    )
    schedule, zero = motion_schedule(), torch.zeros((), dtype=F64)
    grid = DipSampler(model(), None, Sampling(steps=4)).grid[:-2]
    wanted = [float(ddpm_step(zero, zero, schedule.level(t), schedule.level(t - 1)).std) ** 2 for t in grid]
    assert seen == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("way", ["dip", "direct"])
def test_a_batch_is_its_motions_alone(way):
    made, options = model().double(), Sampling(steps=5, policy_steps=2, way=way)
    sampler = DipSampler(made, policy(ProcBody().double(), PAPER, way=way, policy_steps=2), options)

    def double(one):
        return replace(one, poses=one.poses.double(), hints=one.hints.double())

    both = sampler.sample(double(a_round(setting(2), 2)), generators_of(1, 2))
    assert both.dtype == F64
    for index in (0, 1):
        alone = sampler.sample(double(a_round(setting(1))), generators_of(1, 2)[index : index + 1])
        assert torch.allclose(both[index], alone[0], atol=1e-6)


def test_key_poses_are_kept_until_the_window_closes():
    made = model()
    here, poses = setting(), standing()
    keys = torch.zeros(1, 24, 69, dtype=torch.bool)
    keys[:, :5] = True
    made_round = Round(here, poses, keys, here.goals.points, here.goals.mask)
    kept = DipSampler(made, None, Sampling(steps=8, inpaint_until=0)).sample(made_round, generators_of(0, 1))
    assert torch.equal(kept[:, :5], poses[:, :5])
    never = DipSampler(made, None, Sampling(steps=8, inpaint_until=1000)).sample(
        made_round, generators_of(0, 1)
    )
    plain = DipSampler(made, None, Sampling(steps=8)).sample(a_round(here), generators_of(0, 1))
    assert torch.equal(never, plain)


def test_schedulers_of_diffusers_are_taken():
    from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

    scheduler = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    one = DipSampler(model(), None, Sampling(steps=4), scheduler).sample(
        a_round(setting()), generators_of(0, 1)
    )
    own = DipSampler(model(), None, Sampling(steps=4)).sample(a_round(setting()), generators_of(0, 1))
    assert torch.allclose(one, own, atol=1e-4)
    with pytest.raises(InputError, match="flow"):
        DipSampler(model(), None, Sampling(steps=4), FlowMatchEulerDiscreteScheduler())


def test_rounds_whose_parts_do_not_fit_are_refused():
    here = setting()
    with pytest.raises(InputError, match="poses must be"):
        Round(here, torch.zeros(1, 24, 68), torch.zeros(1, 24, 69), here.goals.points, here.goals.mask)
    with pytest.raises(InputError, match="goals must be"):
        Round(
            here,
            torch.zeros(1, 20, 69),
            torch.zeros(1, 20, 69),
            torch.zeros(1, 20, 22, 3),
            torch.zeros(1, 20, 22),
        )


# --- rounds ---


def test_waypoints_get_their_frames():
    plan = [Waypoint((0.0, 2.0, 0.0)), Waypoint((0.0, 4.0, 0.0)), Waypoint((0.0, 5.0, 0.0), "sit")]
    now = torch.tensor((0.0, 0.0, 0.9))
    target = aim(plan, now, 1, 160, 1.25 / 40, Moving(hold=5))
    assert (target.frames, target.reached, target.kept, target.action) == ([64, 128], 2, 129, "walk")
    assert (target.places[:, 2].tolist(), target.stay) == (pytest.approx([0.9, 0.9]), 159)
    # The second waypoint lies beyond 110 frames: a point on the way to it, at frame 109.
    short = aim(plan, now, 1, 110, 1.25 / 40, Moving())
    assert (short.frames, short.stay) == ([64, 109], None)
    assert float(short.places[1, 1]) == pytest.approx(2.0 + 2.0 * 45 / 64)
    wrong = aim(plan, now, 1, 110, 1.25 / 40, Moving(reference_timing=True))
    assert float(wrong.places[1, 1]) == pytest.approx(2.0 + 2.0 * 19 / 64)
    held = aim(plan[2:], torch.tensor((0.0, 4.5, 0.9)), 10, 160, 0.5 / 40, Moving(hold=5))
    assert held.frames == list(range(held.frames[0], held.frames[0] + 6))
    assert held.kept == held.frames[-1] + 1


def test_the_branch_sees_the_whole_way_of_a_walk():
    plan = [Waypoint((0.0, 1.0, 0.0)), Waypoint((1.0, 1.0, 0.0))]
    target = aim(plan, torch.tensor((0.0, 0.0, 0.9)), 4, 24, 0.1, Moving())
    assert (target.frames, target.stay) == ([13, 23], None)
    way = target.way(torch.tensor((0.0, 0.0, 0.9)), target.places, 4)
    assert way[[0, 8, 9, 10, 19]].tolist() == [
        pytest.approx(there, abs=1e-6)
        for there in ([0, 0.1, 0.9], [0, 0.9, 0.9], [0, 1, 0.9], [0.1, 1, 0.9], [1, 1, 0.9])
    ]
    near = aim(plan[:1], torch.tensor((0.0, 0.5, 0.9)), 4, 24, 0.1, Moving())
    assert near.stay == 23
    assert near.way(torch.tensor((0.0, 0.5, 0.9)), near.places, 4)[5:].unique(dim=0).tolist() == [
        pytest.approx([0, 1, 0.9])
    ]
    seen = {}
    for shown in (True, False):
        agent = make_agent(model(), BODY, Sampling("control", steps=2), Moving(history=4, show_way=shown))
        sample = agent.sampler.sample
        agent.sampler.sample = lambda made, draws, sample=sample, shown=shown: (
            seen.setdefault(shown, made) and sample(made, draws)
        )
        agent.run([plan], standing(1, 10), None, generators_of(0, 1))
    assert seen[True].hinted[0, :, 0].all()
    assert 4 < seen[False].hinted[0, :, 0].sum() < 8
    assert torch.equal(seen[True].setting.goals.flat, seen[False].setting.goals.flat)
    assert not seen[True].hinted[..., 1:].any()


def test_a_waypoint_is_done_where_the_body_got_near_it():
    plan = [Waypoint((0.0, 1.0, 0.0)), Waypoint((0.0, 2.0, 0.0))]
    target = aim(plan, torch.tensor((0.0, 0.0, 0.9)), 1, 80, 0.06, Moving())
    way = torch.zeros(80, 3)
    way[:, 1] = torch.linspace(0.0, 1.6, 80)
    assert target.reached == 2
    assert arrived(target, way, 0.15) == 1
    assert arrived(target, way, 0.5) == 2
    assert arrived(target, way + 1.0, 0.15) == 0
    assert arrived(target, way, None) == 2


def test_plans_without_way_are_refused():
    start = torch.zeros(3)
    room = Room(torch.tensor([[3.0, 3.0]]), torch.tensor([[[1.0, 0.0, 0.5, 0.3, 0.3, 0.5, 0.0]]]))
    bad = {
        "at least one waypoint": [],
        "where the one before": [Waypoint((1.0, 1.0, 0.0)), Waypoint((1.0, 1.0, 0.0))],
        "no place": [Waypoint((float("nan"), 0.0, 0.0))],
        "inside a wall or furniture": [Waypoint((1.0, 0.1, 0.0))],
    }
    for sentence, plan in bad.items():
        with pytest.raises(InputError, match=sentence):
            check_plan(plan, start, room)
    with pytest.raises(InputError, match="inside a wall"):
        check_plan([Waypoint((0.0, 4.0, 0.0))], start, room)
    with pytest.raises(InputError, match="swim"):
        Waypoint((0.0, 1.0, 0.0), "swim")


def test_long_plans_become_one_motion():
    history = standing(2, 10)
    history[..., 68] += 0.95
    history[1, :, 66] += 2.0
    plans = [[Waypoint((0.0, 3.0, 0.0))], [Waypoint((2.0, 0.6, 0.0)), Waypoint((2.0, 0.6, 0.6), "sit")]]
    options = Sampling("inpainting", steps=3, inpaint_until=0)
    agent = make_agent(model(), BODY, options, Moving(history=6, hold=2))
    motions = agent.run(plans, history, None, generators_of(0, 2))
    assert [one.done for one in motions] == [1, 2]
    for index, one in enumerate(motions):
        assert torch.equal(one.frames[:4], history[index, :4])
        assert len(one.frames) == 10 + sum(len(part) - 6 for part in one.rounds)
        assert one.joins[0] == 10
        # A round begins where the motion was: its shared frames are within what a tiny model can do of them.
        assert one.frames.isfinite().all()
    again = agent.run(plans[:1], history[:1], None, generators_of(0, 1))
    assert torch.allclose(again[0].frames, motions[0].frames, atol=1e-3)
    cut = unblended(motions, 6)
    assert len(cut[0].frames) == len(motions[0].frames)
    plain = MotionAgent(agent.sampler, BODY, Moving(history=6, hold=2, blend=False), inpaint_goals=True)
    single = plain.run(plans[:1], history[:1], None, generators_of(0, 1))
    assert torch.allclose(single[0].frames, cut[0].frames, atol=1e-3)


def test_a_plan_that_is_never_reached_ends():
    agent = make_agent(model(), BODY, Sampling("control", steps=2), Moving(history=6))
    (motion,) = agent.run([[Waypoint((0.0, 9.0, 0.0))]], standing(1, 10), None, generators_of(0, 1))
    assert motion.done == 0 or len(motion.rounds) < 40
    assert len(motion.rounds) <= 2 * 13


def test_best_of_several_samples_is_said_separately():
    distance, none = np.array((0.5, 0.1, 0.3, 0.2)), np.zeros(4)
    judged = Judged((distance < 0.25).astype(float), distance, none, none, none, none * np.nan, none)
    assert judged.summary()["distance"] == pytest.approx(0.275)
    assert judged.best_of(2)["distance"] == pytest.approx(0.15)
    assert judged.best_of(2)["success"] == 1.0
