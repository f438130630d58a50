"""The policy: warm starts by row, the first replan, discrete dimensions, restarts, refreshing, resuming."""

import numpy as np
import pytest
import torch
from noiseworks.bench.testbeds.tabletop import TabletopBatch, hold
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.kits.policies import (
    DiffusionPolicy,
    LinearNormalizer,
    NativePolicy,
    PolicyConfig,
    control_loop,
    episode_list,
    evaluate,
)
from noiseworks.rti_dp import DiscreteSpec, Gaussian, GaussianHost, RTIPolicy, TruncatedPolicy

CONFIG = PolicyConfig(
    obs_dim=4,
    action_dim=3,
    horizon=8,
    n_action_steps=4,
    down_dims=(8, 16),
    step_embed_dim=8,
    num_train_timesteps=20,
)
FULL = CONFIG.num_train_timesteps  # network calls of a replan from noise


def make_host(**changes):
    torch.manual_seed(0)
    settings = {**vars(CONFIG), "p_drop_attn": 0.0, **changes}
    return NativePolicy(PolicyConfig(**settings)).eval()


def iterating(host, steps=(15, 6, 0), **settings):
    """Return a policy of three warm steps on a host with few steps."""
    return RTIPolicy(host, steps, **settings)


def observe(step, rows=range(3)):
    generator = torch.Generator().manual_seed(step)
    return {"obs": torch.randn(3, 4, generator=generator)[list(rows)]}


@pytest.mark.parametrize("network", ["unet", "transformer"])
def test_the_first_replan_is_the_hosts_sampler_bit_for_bit(network):
    host = make_host(network=network, n_layer=1, n_emb=16)
    rti, full = iterating(host, num_envs=3, execute=4), DiffusionPolicy(host, num_envs=3)
    for policy in (rti, full):
        policy.reset(seeds=[5, 6, 7])
    assert torch.equal(rti.act(observe(0)), full.act(observe(0)))
    assert rti.stats.nfes == [FULL]


def test_all_indices_from_a_noise_guess_are_the_hosts_sampler_bit_for_bit():
    host = make_host()
    rti, full = (
        iterating(host, range(FULL - 1, -1, -1), cache=False, shift=False, num_envs=3),
        DiffusionPolicy(host, num_envs=3),
    )
    noise = torch.stack([torch.randn(8, 3, generator=torch.Generator().manual_seed(s)) for s in (5, 6, 7)])
    for policy in (rti, full):
        policy.reset(seeds=[5, 6, 7])
        policy.remember(observe(0), range(3))
    rti.guess, rti.warm[:] = noise, True
    for generator in rti.generators:  # the noise was this generator's first draw
        torch.randn(8, 3, generator=generator)
    assert torch.equal(rti.replan([0, 1, 2]).prediction, full.replan([0, 1, 2]).prediction)


def test_inpainted_entries_are_imposed_before_every_call_and_at_the_end():
    host, seen = make_host(), []
    denoise = host.denoise
    host.impose = lambda x, cond: x[..., 1].fill_(0.25)
    host.denoise = lambda x, k, cond: seen.append(x[..., 1].clone()) or denoise(x, k, cond)
    rti, full = (
        iterating(host, initial_steps=5, num_envs=3),
        DiffusionPolicy(host, num_inference_steps=5, num_envs=3),
    )
    for policy in (rti, full):
        policy.reset(seeds=[5, 6, 7])
    first = rti.act(observe(0))
    assert torch.equal(first, full.act(observe(0)))
    assert bool((rti.act(observe(1))[:, 1] == 0.25).all())
    assert len(seen) == 5 + 5 + 3
    assert all(bool((entry == 0.25).all()) for entry in seen)


def test_a_guess_is_moved_by_the_actions_executed_since():
    policy = RTIPolicy(GaussianHost(Gaussian(), horizon=4, n_action_steps=2), num_envs=4)
    policy.guess[:] = torch.arange(4.0)[:, None]
    policy.since[:] = torch.tensor([0, 1, 2, 9])
    moved = policy.moved_guess([0, 1, 2, 3])[..., 0].tolist()
    assert moved == [[0, 1, 2, 3], [1, 2, 3, 3], [2, 3, 3, 3], [3, 3, 3, 3]]
    policy.shift = False
    assert policy.moved_guess([3])[..., 0].tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(("execute", "delay"), [(1, 1), (3, 3)])
def test_acting_moves_the_guess_by_what_was_executed(execute, delay):
    policy = iterating(make_host(), execute=execute)
    seen = []
    moved = policy.moved_guess
    policy.moved_guess = lambda ids: seen.append(policy.since[ids].tolist()) or moved(ids)
    for step in range(2 * execute + 1):
        policy.act(observe(step, [0]))
    assert seen == [[delay], [delay]]
    assert policy.stats.nfes == [FULL, 3, 3]


def test_cold_and_warm_rows_share_a_batch():
    policy = iterating(make_host(), num_envs=3)
    policy.act(observe(0))
    policy.reset([1])
    policy.act(observe(1))
    assert policy.stats.nfes == [FULL, 3, FULL]
    assert policy.stats.batches == [3, 2, 1]
    assert policy.stats.row_calls == 3 * FULL + 2 * 3 + FULL


def test_resetting_a_row_changes_nothing_in_the_others():
    host, actions = make_host(), []
    for again in (False, True):
        policy = iterating(host, (5, 2, 0), num_envs=3)
        policy.reset(seeds=[1, 2, 3])
        for step in range(4):
            if again and step == 2:
                policy.reset([1], [9])
            last = policy.act(observe(step))
        actions.append(last)
    torch.testing.assert_close(actions[0][[0, 2]], actions[1][[0, 2]], rtol=0, atol=1e-5)
    assert not torch.allclose(actions[0][1], actions[1][1])


def test_a_batch_is_its_rows_run_alone():
    host = make_host()
    batch = iterating(host, num_envs=3)
    batch.reset(seeds=[1, 2, 3])
    together = torch.stack([batch.act(observe(step)) for step in range(3)])
    for row in range(3):
        alone = iterating(host)
        alone.reset(seeds=[row + 1])
        one = torch.stack([alone.act(observe(step, [row])) for step in range(3)])
        torch.testing.assert_close(one[:, 0], together[:, row], rtol=0, atol=1e-5)


def test_the_modulation_table_changes_only_rounding():
    host, found = make_host(), []
    for cache in (True, False):
        policy = iterating(host, (15, 9, 0), cache=cache)
        policy.reset(seeds=[3])
        found.append(torch.stack([policy.act(observe(step, [0])) for step in range(3)]))
        assert (policy.films is not None) == cache
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


def test_a_network_that_something_hangs_on_is_called_as_it_is():
    host, calls = make_host(), []
    handle = host.net.mid_modules[0].register_forward_hook(lambda *_: calls.append(1))
    policy = iterating(host, (1, 0))
    policy.act(observe(0, [0]))
    policy.act(observe(1, [0]))
    assert len(calls) == FULL + 2
    handle.remove()
    assert iterating(host).films is not None


def test_the_host_is_left_bit_for_bit_as_it_was():
    host = make_host(num_train_timesteps=100)
    before = {name: t.clone() for name, t in host.state_dict().items()}
    names, config = set(vars(host)), dict(host.scheduler.config)
    timesteps = host.scheduler.timesteps.clone()
    policy = RTIPolicy(host, schedule="linear100")
    for step in range(2):
        policy.act(observe(step, [0]))
    assert all(torch.equal(before[name], t) for name, t in host.state_dict().items())
    assert (set(vars(host)), dict(host.scheduler.config)) == (names, config)
    assert torch.equal(host.scheduler.timesteps, timesteps)


def test_clip_snaps_the_guess_and_decides_the_action():
    spec = DiscreteSpec((0,), "clip", 10)
    guess = torch.tensor([0.7, -0.01, 0.0])[None, :, None].repeat(1, 1, 2)
    assert spec.snap_guess_(guess.clone())[0, :, 0].tolist() == pytest.approx([0.1, -0.1, -0.1])
    assert spec.decide_(guess.clone())[0, :, 0].tolist() == [1, -1, -1]
    assert torch.equal(spec.snap_guess_(guess.clone())[..., 1], guess[..., 1])
    policy = iterating(make_host(), discrete=DiscreteSpec((2,), "clip", 5))
    action = policy.act(observe(0, [0]))
    assert action[0, 2].abs() == 1
    assert iterating(make_host(), discrete="2:clip:5").discrete == policy.discrete
    torch.testing.assert_close(policy.guess[..., 2].abs(), torch.full((1, 8), 0.2))


def test_scale_keeps_the_guess_and_needs_an_identity_normaliser():
    policy = iterating(make_host(), discrete=DiscreteSpec((2,), "scale", 10))
    action = policy.act(observe(0, [0]))
    assert action[0, 2].abs() == 1
    assert policy.guess[..., 2].unique().numel() > 2
    host = make_host()
    host.normalizer = LinearNormalizer(torch.tensor([1.0, 1.0, 10.0]), torch.zeros(3))
    with pytest.raises(InputError, match="identity"):
        iterating(host, discrete=DiscreteSpec((2,), "scale"))
    iterating(host, discrete=DiscreteSpec((0,), "scale"))


def test_a_guess_that_is_not_finite_starts_cold_and_is_counted():
    policy = iterating(make_host(), num_envs=3, discrete=DiscreteSpec((2,), "clip"))
    policy.act(observe(0))
    policy.guess[1, 3, 0] = torch.nan
    actions = policy.act(observe(1))
    assert actions.isfinite().all()
    assert policy.restarts == 1
    assert policy.warm.all()
    assert policy.stats.nfes == [FULL, 3, FULL]
    with pytest.raises(NonFiniteError, match=r"\[2\]"):
        policy.act({"obs": torch.tensor([0.0, 0.0, torch.nan])[:, None].repeat(1, 4)})
    policy = iterating(make_host(), num_envs=3)
    policy.host.denoise = lambda x, k, cond: x * torch.tensor([1.0, torch.nan, 1.0])[:, None, None]
    with pytest.raises(NonFiniteError, match=r"full denoising of environments \[1\]"):
        policy.act(observe(0))


def test_refreshing_by_number_and_by_rule():
    policy = iterating(make_host(), refresh_every=2)
    for step in range(5):
        policy.act(observe(step, [0]))
    assert policy.stats.nfes == [FULL, 3, 3, FULL, 3]
    seen = []

    def rule(obs, guess):
        seen.append((obs["obs"].shape, guess.shape))
        return obs["obs"][:, -1, 0] > 0

    policy = iterating(make_host(), refresh_if=rule, num_envs=2)
    for x in (1.0, -1.0, 1.0):
        policy.act({"obs": torch.tensor([[x], [-1.0]]).repeat(1, 4)})
    assert seen == [((2, 2, 4), (2, 8, 3))] * 2
    assert policy.stats.nfes == [FULL, 3, 3, FULL]
    policy.refresh_if = lambda obs, guess: torch.tensor(True)
    with pytest.raises(InputError, match="one flag"):
        policy.act(observe(0, [0, 1]))


def test_a_state_goes_on_to_the_same_actions():
    host = make_host()
    policy = iterating(host, num_envs=3, execute=2)
    for step in range(3):
        policy.act(observe(step))
    state = policy.state_dict()
    expected = [policy.act(observe(step)) for step in range(3, 7)]
    other = iterating(host, num_envs=3, execute=2, seed=9)
    other.load_state_dict(state)
    for step, action in enumerate(expected, start=3):
        assert torch.equal(other.act(observe(step)), action)
    with pytest.raises(InputError, match="queue"):
        iterating(host, num_envs=2).load_state_dict(state)


def test_a_state_knows_how_far_off_the_next_refresh_is():
    policy, other = (iterating(make_host(), refresh_every=2) for _ in range(2))
    for step in range(2):
        policy.act(observe(step, [0]))
    other.load_state_dict(policy.state_dict())
    for step in range(2, 4):
        other.act(observe(step, [0]))
    assert other.stats.nfes == [3, FULL]


def test_predicting_a_chunk_reads_and_changes_no_guess():
    policy = iterating(make_host(), num_envs=2)
    policy.act(observe(0, [0, 1]))
    guess, obs = policy.guess.clone(), {"obs": torch.zeros(5, 2, 4)}
    first, second = (policy.predict_chunk(obs, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first.prediction, second.prediction)
    assert first.nfe == FULL
    assert torch.equal(policy.guess, guess)


def test_the_last_step_is_clipped_and_draws_no_noise():
    policy = iterating(make_host(), (0,))
    policy.act(observe(0, [0]))
    before = policy.generators[0].get_state()
    prediction = policy.replan([0]).prediction
    assert prediction.abs().max() <= 1
    assert torch.equal(policy.generators[0].get_state(), before)


def test_forward_noise_puts_the_guess_on_the_level_of_its_first_step():
    policy = RTIPolicy(GaussianHost(Gaussian(), horizon=512), (60, 0), forward_noise=True)
    policy.guess.fill_(0.5)
    x = torch.empty(1, 512, 1)
    policy._guess_into(x, [0], [torch.Generator().manual_seed(0)])
    assert float(x.mean()) == pytest.approx(0.5 * float(policy.table.signal[0]), abs=0.1)
    assert float(x.std()) == pytest.approx(float(policy.table.sigma[0]), abs=0.1)


def test_half_precision_networks_keep_a_float32_guess():
    class Half(torch.nn.Module):
        horizon, n_obs_steps, n_action_steps, action_dim = 8, 1, 2, 3

        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(3, 3, dtype=torch.bfloat16)
            self.scheduler, self.normalizer = make_host().scheduler, LinearNormalizer.identity(3)

        def encode(self, obs):
            return obs["obs"]

        def denoise(self, x, k, cond):
            assert x.dtype == torch.bfloat16
            return self.net(x)

    policy = iterating(Half().eval())
    for step in range(2):
        policy.act(observe(step, [0]))
    assert policy.guess.dtype == torch.float32
    assert policy.restarts == 0


def test_an_inference_delay_moves_the_guess_by_the_steps_that_passed():
    host = make_host(obs_dim=33)
    policy = iterating(host, execute=3)
    env = TabletopBatch(1, max_steps=9)
    trace = control_loop(policy, env, control_hz=10, latency_s=0.1, hold=hold)
    assert set(trace.delays.tolist()) == {1}
    assert trace.held.tolist() == [True] + 8 * [False]
    assert policy.warm.all()


def test_the_policies_run_the_testbed():
    host, episodes = make_host(obs_dim=33), episode_list([0, 11], 2, seed=3)
    for policy in (
        iterating(host, (3, 1, 0), discrete=DiscreteSpec((2,), "clip"), initial_steps=10, num_envs=3),
        TruncatedPolicy(host, (3, 1, 0), num_envs=3),
    ):
        report = evaluate(policy, TabletopBatch(3, max_steps=4), *episodes, record=True)
        assert np.isfinite(report.actions).all()
        assert report.nfe_per_replan < 8
        if isinstance(policy, RTIPolicy):
            assert set(np.unique(report.actions[..., 2]).tolist()) <= {-1, 1}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_envs": 0}, "num_envs"),
        ({"execute": 9}, "n_action_steps"),
        ({"refresh_every": 0}, "refresh_every"),
        ({"stepping": "other"}, "stepping"),
        ({"solver": "euler"}, "solver"),
        ({"noise": "much"}, "noise"),
        ({"initial_steps": 101}, "num_inference_steps"),
        ({"discrete": DiscreteSpec((3,), "clip")}, "0 to 2"),
        ({"discrete": "2:snap"}, "clip, scale"),
        ({"discrete": {"dims": 2}}, "DiscreteSpec or words"),
        ({"schedule": "other"}, "schedule"),
    ],
)
def test_bad_settings_are_refused(settings, named):
    with pytest.raises(InputError, match=named):
        iterating(make_host(), **settings)


def test_a_batch_of_another_size_is_refused():
    policy = iterating(make_host(), num_envs=2)
    with pytest.raises(InputError, match="2 environments"):
        policy.act(observe(0))


@pytest.mark.parametrize("text", ["2", "2:clip:x", "a:clip", "2:clip:0", "2:snap", "2:clip:1:2", ":clip"])
def test_bad_discrete_words_are_refused(text):
    with pytest.raises(InputError):
        DiscreteSpec.parse(text)


def test_discrete_words():
    assert DiscreteSpec.parse("none") == DiscreteSpec()
    assert DiscreteSpec.parse("9,19:scale") == DiscreteSpec((9, 19), "scale", 10)
    assert DiscreteSpec.parse("2:clip:5") == DiscreteSpec((2,), "clip", 5)
