"""Policies in a loop: what is executed when, whose noise it is, what is counted, and what a delay does."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from noiseworks.core.errors import InputError, NonFiniteError, UnsupportedHostError
from noiseworks.kits.policies import (
    ActionPolicy,
    DiffusionPolicy,
    NativePolicy,
    PolicyConfig,
    ReplanningPolicy,
    as_host,
    control_loop,
    episode_list,
    evaluate,
    make_scheduler,
    measure_latency,
    randn,
    replanning,
    sampling_scheduler,
    wilson_interval,
)
from noiseworks.kits.policies.evaluation import time_in_turns
from noiseworks.kits.policies.video import check_video, write_video


class Host:
    """Observations hold the time; the condition is all that was observed."""

    horizon, n_obs_steps, n_action_steps, action_dim = 12, 3, 8, 1
    normalizer = SimpleNamespace(normalize=lambda x: x / 2, unnormalize=lambda x: 2 * x)
    scheduler = None

    def encode(self, obs):
        return obs["obs"]

    def denoise(self, x, k, cond):
        return x


class Labels(ReplanningPolicy):
    """Entry j of the prediction made at time t is 50 t + j / 2, in environment units 100 t + j."""

    def plan(self, cond, ids, generator, rows):
        now = cond[:, -1, 0].double()
        return (50 * now[:, None] + torch.arange(12) / 2)[..., None], 5


class Clocks:
    """Environments that show how long their episode lasts; task t is solved at step t, the limit is 30."""

    def __init__(self, n):
        self.num_envs = n
        self.time, self.tasks, self.seeds = (np.zeros(n, np.int64) for _ in range(3))
        self.log = []

    def reset(self, rows, tasks, seeds):
        self.time[rows], self.tasks[rows], self.seeds[rows] = 0, tasks, seeds

    def observe(self):
        return {"obs": np.stack((self.time, self.seeds), 1).astype(np.float32)}

    def step(self, actions):
        self.log.append(actions.copy())
        self.time += 1
        done = (self.time >= self.tasks) & (self.tasks > 0)
        return SimpleNamespace(
            reward=done.astype(float), terminated=done, truncated=~done & (self.time >= 30)
        )


def observed(time, env=0):
    return {"obs": torch.tensor([[float(time), float(env)]])}


def test_chunks_are_executed_as_written_out():
    policy, actions, replans = Labels(Host()), [], []
    for t in range(20):
        if t % 8 == 0:
            replans.append(t)
        actions.append(float(policy.act(observed(t))[0, 0]))
    # Entry j of a prediction made at r is for time r - (To - 1) + j: at time t that is j = t - r + 2.
    expected = [100 * (t - t % 8) + (t % 8) + 2 for t in range(20)]
    assert actions == expected
    assert policy.stats.nfes == [5] * len(replans)
    assert policy.stats.nfe_per_action == pytest.approx(15 / 20)
    assert int(policy.since[0]) == 4


def test_a_late_start_of_the_executed_part_is_kept():
    host = Host()
    host.chunk = SimpleNamespace(start_at_current=False)
    assert float(Labels(host).act(observed(0))[0, 0]) == 3.0


def test_a_new_episode_fills_its_history_and_later_ones_move_it():
    seen = []

    class Watching(Labels):
        def plan(self, cond, ids, generator, rows):
            seen.append(cond[0, :, 0].tolist())
            return super().plan(cond, ids, generator, rows)

    policy = Watching(Host(), n_action_steps=1)
    for t in range(4):
        policy.act(observed(t))
    policy.reset()
    policy.act(observed(9))
    assert seen == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [9, 9, 9]]


def test_environments_replan_on_their_own_clock():
    policy, times, got = Labels(Host(), num_envs=2), [0, 0], []
    for step in range(12):
        if step == 5:
            policy.reset([1])
            times[1] = 0
        obs = {"obs": torch.tensor([[float(t), 0.0] for t in times])}
        got.append(policy.act(obs)[:, 0].tolist())
        times = [t + 1 for t in times]
    first = [100 * (t - t % 8) + t % 8 + 2 for t in range(12)]
    second = first[:5] + first[:7]
    assert got == [list(pair) for pair in zip(first, second, strict=True)]
    assert policy.stats.batches == [2, 1, 1]


def test_a_plan_on_its_own_changes_no_environment():
    policy = Labels(Host())
    policy.act(observed(0))
    chunk = policy.predict_chunk({"obs": torch.full((4, 3, 2), 7.0)})
    assert chunk.actions.shape == (4, 8, 1)
    assert chunk.prediction.shape == (4, 12, 1)
    assert chunk.actions[0, 0, 0] == 702
    assert float(policy.act(observed(1))[0, 0]) == 3.0
    assert policy.stats.nfes == [5]


def test_every_step_is_held_to_the_first_observation_where_the_host_states_none():
    policy = Labels(Host(), num_envs=2)
    first = {"obs": torch.zeros(2, 2)}
    policy.act(first)
    for wrong, words in (
        ({"seen": torch.zeros(2, 2)}, "lacks obs"),
        ({"obs": torch.zeros(2, 3)}, r"\[2, 2\]"),
    ):
        with pytest.raises(InputError, match=words):
            policy.act(wrong)
    with pytest.raises(NonFiniteError, match=r"environments \[1\]"):
        policy.act({"obs": torch.tensor([[0.0, 0.0], [0.0, torch.nan]])})
    with pytest.raises(NonFiniteError, match=r"environments \[1\]"):
        policy.act({"obs": torch.tensor([[torch.nan, 0.0]])}, [1])
    with pytest.raises(NonFiniteError):
        policy.predict_chunk({"obs": torch.full((1, 3, 2), torch.inf)})
    assert policy.stats.executed == 2
    assert torch.equal(
        policy.act({"obs": torch.zeros(2, 2, dtype=torch.float64)}), torch.tensor([[3.0], [3.0]])
    )
    policy.reset()
    policy.act({"obs": torch.zeros(2, 3)})


def test_a_native_policy_refuses_another_width_in_the_first_step_and_later():
    policy = DiffusionPolicy(small_policy(), num_inference_steps=2)
    with pytest.raises(InputError, match=r"\[1, 2\], got \[1, 3\]"):
        policy.act({"obs": torch.zeros(1, 3)})
    policy.act({"obs": torch.zeros(1, 2)})
    with pytest.raises(InputError, match=r"\[1, 2\], got \[1, 3\]"):
        policy.act({"obs": torch.zeros(1, 3)})


@pytest.mark.parametrize(
    "call",
    [
        lambda p: p.act(None),
        lambda p: p.act({}),
        lambda p: p.act({"obs": torch.zeros(2, 2)}),
        lambda p: p.act(observed(0), [1]),
        lambda p: p.reset([0], [1, 2]),
        lambda p: Labels(Host(), num_envs=0),
        lambda p: Labels(Host(), n_action_steps=11),
    ],
)
def test_bad_batches_are_refused(call):
    with pytest.raises(InputError):
        call(Labels(Host()))


def small_policy():
    torch.manual_seed(0)
    sizes = {"obs_dim": 2, "action_dim": 2, "horizon": 8, "n_action_steps": 4, "num_train_timesteps": 20}
    return NativePolicy(PolicyConfig(**sizes, down_dims=(8, 16), kernel_size=3, step_embed_dim=8)).eval()


def cosine_bars(steps):
    """Products of 1 - beta of the squared-cosine schedule, betas cut at 0.999."""

    def level(t):
        return np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2

    betas = [min(1 - level((i + 1) / steps) / level(i / steps), 0.999) for i in range(steps)]
    return np.cumprod(1 - np.array(betas))


def written_out(host, obs, solver, steps, generator):
    """The sampler step by step in float64: x0 clipped to 1, then the posterior mean (and noise)."""
    bars, cond = cosine_bars(20), host.encode(obs)
    x = torch.randn(8, 2, generator=generator)[None].double()
    times = list(range(0, 20, 20 // steps))[::-1]
    for k in times:
        before = k - 20 // steps
        bar, bar0 = bars[k], bars[before] if before >= 0 else 1.0
        eps = host.denoise(x.float(), torch.tensor([k]), cond).double()
        x0 = ((x - np.sqrt(1 - bar) * eps) / np.sqrt(bar)).clamp(-1, 1)
        if solver == "ddim":
            # As published, clipping x0 leaves the network's noise as it is.
            x = np.sqrt(bar0) * x0 + np.sqrt(1 - bar0) * eps
            continue
        alpha = bar / bar0
        mean = np.sqrt(bar0) * (1 - alpha) / (1 - bar) * x0 + np.sqrt(alpha) * (1 - bar0) / (1 - bar) * x
        noise = torch.randn(1, 8, 2, generator=generator).double() if k > 0 else 0.0
        x = mean + np.sqrt((1 - bar0) / (1 - bar) * (1 - alpha)) * noise
    return x


@pytest.mark.parametrize(("solver", "steps"), [("ddpm", 20), ("ddpm", 5), ("ddim", 20), ("ddim", 4)])
@torch.inference_mode()
def test_the_baseline_is_the_written_out_sampler(solver, steps):
    host, obs = small_policy(), {"obs": torch.randn(1, 2, 2)}
    policy = DiffusionPolicy(host, solver=solver, num_inference_steps=steps)
    chunk = policy.predict_chunk(obs, [torch.Generator().manual_seed(3)])
    expected = written_out(host, obs, solver, steps, torch.Generator().manual_seed(3))
    torch.testing.assert_close(chunk.prediction.double(), expected, atol=2e-4, rtol=1e-4)
    assert chunk.nfe == steps
    torch.testing.assert_close(chunk.actions, chunk.prediction[:, 1:5])


def test_rows_do_not_depend_on_their_batch():
    policy, obs = DiffusionPolicy(small_policy(), num_inference_steps=5), torch.randn(3, 2, 2)

    def plan(rows):
        generators = [torch.Generator().manual_seed(i) for i in rows]
        return policy.predict_chunk({"obs": obs[list(rows)]}, generators).actions

    together = plan(range(3))
    for i in range(3):
        torch.testing.assert_close(plan([i])[0], together[i], atol=1e-5, rtol=1e-5)


def test_a_state_goes_on_to_the_same_actions():
    host = small_policy()
    first, second = DiffusionPolicy(host, num_envs=2), DiffusionPolicy(host, num_envs=2, seed=9)
    observations = [{"obs": torch.full((2, host.config.obs_dim), float(t))} for t in range(12)]
    for obs in observations[:3]:
        first.act(obs)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.past([1])["obs"], first.past([1])["obs"])
    for policy in (first, second):  # an observation without an action, which a loop with a delay makes
        policy.remember(observations[3], [0, 1])
    for obs in observations[4:]:  # over the end of the chunk, so that noise is drawn again
        assert torch.equal(first.act(obs), second.act(obs))
    with pytest.raises(InputError, match="queue"):
        DiffusionPolicy(host).load_state_dict(first.state_dict())


def test_the_kit_has_the_shapes_it_names():
    host = small_policy()
    assert as_host(host) is host
    assert isinstance(DiffusionPolicy(host), ActionPolicy)


def test_noise_comes_from_one_generator_or_one_a_row():
    def seeded(seed):
        return torch.Generator().manual_seed(seed)

    assert torch.equal(randn((2, 3), seeded(1)), torch.randn(2, 3, generator=seeded(1)))
    rows = randn((2, 3), [seeded(1), seeded(2)])
    assert torch.equal(rows[1], torch.randn(3, generator=seeded(2)))
    assert randn((2, 3), None, like=torch.zeros(1)).shape == (2, 3)
    with pytest.raises(InputError, match="one generator per row"):
        randn((2, 3), [seeded(1)])


def test_the_scheduler_is_the_published_one_and_a_run_leaves_it_alone():
    scheduler = make_scheduler()
    np.testing.assert_allclose(scheduler.alphas_cumprod, cosine_bars(100), atol=1e-6)
    config = scheduler.config
    assert (config.variance_type, config.clip_sample, config.prediction_type) == (
        "fixed_small",
        True,
        "epsilon",
    )
    fresh = sampling_scheduler(scheduler, "ddim", 10)
    assert fresh.timesteps.tolist() == list(range(90, -1, -10))
    assert len(scheduler.timesteps) == 100
    with pytest.raises(InputError):
        sampling_scheduler(scheduler, "ddim", 101)
    scheduler.register_to_config(variance_type="learned")
    with pytest.raises(UnsupportedHostError, match="learned"):
        sampling_scheduler(scheduler, "ddpm")


@pytest.mark.parametrize(
    ("successes", "n", "expected"),
    [
        (8, 10, (0.4902, 0.9433)),
        (0, 10, (0.0, 0.2775)),
        (50, 50, (0.9287, 1.0)),
        (300, 600, (0.4601, 0.5399)),
    ],
)
def test_wilson_intervals_have_their_known_values(successes, n, expected):
    assert wilson_interval(successes, n) == pytest.approx(expected, abs=6e-5)


def test_episodes_are_every_task_with_the_same_seeds():
    tasks, seeds = episode_list([3, 7], 2, 500)
    assert tasks.tolist() == [3, 3, 7, 7]
    assert seeds.tolist() == [500, 501, 500, 501]


@pytest.mark.parametrize("n", [1, 3, 8])
def test_an_evaluation_does_not_depend_on_the_batch(n):
    tasks, seeds = np.array([4, 9, 0, 2, 9]), np.arange(5)
    report = evaluate(Labels(Host(), num_envs=n), Clocks(n), tasks, seeds, record=True)
    assert report.success.tolist() == [True, True, False, True, True]
    assert report.steps.tolist() == [4, 9, 30, 2, 9]
    lengths = np.isfinite(report.actions[..., 0]).sum(1)
    assert lengths.tolist() == [4, 9, 30, 2, 9]
    assert report.actions[1, :9, 0].tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 802]
    assert report.observations[2, :30, 0].tolist() == list(range(30))
    # Replans of 5 calls each: 1 + 2 + 4 + 1 + 2 of them, 54 actions.
    assert report.nfe_per_action == pytest.approx(5 * 10 / 54)
    assert report.nfe_per_replan == 5
    assert report.success_rate == 0.8
    assert report.by_task()[9]["n"] == 2
    assert report.by_task()[9]["steps"] == 9
    summary = report.summary()
    assert summary["episodes"] == 5
    assert summary["steps_to_success"] == 6.5
    assert summary["low"] < 0.8 < summary["high"]


def test_evaluations_refuse_lists_and_policies_that_do_not_fit():
    with pytest.raises(InputError, match="one seed per task"):
        evaluate(Labels(Host()), Clocks(1), np.array([1, 2]), np.array([1]))
    with pytest.raises(InputError, match="made for 1"):
        evaluate(Labels(Host()), Clocks(2), np.array([1]), np.array([1]))


@pytest.fixture
def clock(monkeypatch):
    """A clock on which every replan takes a quarter of a second."""
    now = [0.0]

    def tick():
        now[0] += 0.25
        return now[0]

    monkeypatch.setattr(replanning.time, "perf_counter", tick)


@pytest.mark.usefixtures("clock")
def test_latency_leaves_out_the_first_replans():
    policy = Labels(Host())
    measured = measure_latency(policy, Clocks(1), task=3, replans=4, warmup=2)
    assert measured.record() == {"median_s": 0.25, "p95_s": 0.25, "nfe": 5.0, "repeats": 4}
    assert len(policy.stats.latencies) == 6
    with pytest.raises(InputError, match="one environment"):
        measure_latency(Labels(Host(), num_envs=2), Clocks(2))


@pytest.mark.usefixtures("clock")
def test_policies_are_timed_in_turns():
    order = []

    class Watched(Labels):
        def plan(self, cond, ids, generator, rows):
            order.append((self.seed, int(self.since[0])))
            return super().plan(cond, ids, generator, rows)

    policies = {"a": Watched(Host(), seed=1), "b": Watched(Host(), seed=2)}
    found = time_in_turns(policies, Clocks(1), turns=2, warmup=1)
    assert found == {"a": [0.25, 0.25], "b": [0.25, 0.25]}
    assert order == [(2, 0), (1, 0), (1, 1), (2, 1), (2, 1), (1, 1)]
    with pytest.raises(InputError, match="one environment"):
        time_in_turns({"a": Labels(Host(), num_envs=2)}, Clocks(2), turns=1)


def hold(last):
    return np.full(1, -1.0)


def test_a_delay_is_bridged_by_the_rest_of_the_last_plan():
    trace = control_loop(Labels(Host()), Clocks(1), control_hz=10, hold=hold, latency_s=0.3)
    # Plan of 0 arrives at 3 with its entries from 3 on; the next ones start when 3 actions are left.
    expected, starts = [-1.0] * 3, [0, 5, 10, 15, 20, 25]
    for r in starts:
        expected += [100 * r + 2 + i for i in range(3, 8)]
    assert trace.actions[:, 0].tolist() == expected[:30]
    assert trace.held.tolist() == [True] * 3 + [False] * 27
    assert trace.delays.tolist() == [3] * 6
    assert trace.latencies.tolist() == [0.3] * 6
    assert trace.latency_p95_s == pytest.approx(0.3)
    assert not trace.success


def test_without_a_delay_the_loop_is_the_plain_one():
    env, policy = Clocks(1), Labels(Host())
    trace = control_loop(policy, env, task=11, hold=hold, latency_s=0.0)
    assert trace.actions[:, 0].tolist() == [100 * (t - t % 8) + t % 8 + 2 for t in range(11)]
    assert trace.success
    assert not trace.held.any()
    assert trace.delays.tolist() == [0, 0]
    assert policy.stats.nfe_per_action == pytest.approx(10 / 11)
    np.testing.assert_array_equal(np.stack(env.log)[:, 0], trace.actions)


def test_a_plan_later_than_its_chunk_is_never_executed():
    trace = control_loop(Labels(Host()), Clocks(1), hold=hold, latency_s=0.9)
    assert trace.held.all()
    assert trace.delays.tolist() == [9] * 4


@pytest.mark.usefixtures("clock")
def test_delays_are_measured_unless_given():
    trace = control_loop(Labels(Host()), Clocks(1), task=6, control_hz=10, hold=hold)
    assert trace.latencies.tolist() == [0.25]
    assert trace.delays.tolist() == [2]
    assert trace.held.tolist() == [True, True, False, False, False, False]


def test_the_loop_refuses_batches_and_bad_numbers():
    with pytest.raises(InputError, match="one environment"):
        control_loop(Labels(Host(), num_envs=2), Clocks(2), hold=hold)
    with pytest.raises(InputError, match="control_hz"):
        control_loop(Labels(Host()), Clocks(1), hold=hold, control_hz=0)
    with pytest.raises(InputError, match="latency_s"):
        control_loop(Labels(Host()), Clocks(1), hold=hold, latency_s=-1)


def test_a_video_has_its_frames_and_rests_on_the_last(tmp_path):
    from PIL import Image

    frames = [np.full((8, 12, 3), shade, np.uint8) for shade in (0, 120, 250)]
    write_video(frames, tmp_path / "run.webp")
    with Image.open(tmp_path / "run.webp") as picture:
        assert (picture.n_frames, picture.size) == (3, (12, 8))
    with pytest.raises(InputError, match="at least one frame"):
        write_video([], tmp_path / "none.webp")
    assert not (tmp_path / "none.webp").exists()


@pytest.mark.parametrize(("name", "words"), [("run.gif", "ending in .webp"), ("file/run.webp", "is a file")])
def test_a_video_that_cannot_be_written_is_refused_first(tmp_path, name, words):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=words):
        check_video(tmp_path / name)
