"""Schedules that are not the checkpoint's, suggestions, scaled data, and the loop's memory."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from noiseworks.core.errors import InputError
from noiseworks.kits.policies import Episodes, NativePolicy, PolicyConfig, as_host, make_scheduler
from noiseworks.rti_dp import (
    Choice,
    Gaussian,
    GaussianHost,
    RTIPolicy,
    scale_dataset,
    suggest_steps,
)
from noiseworks.rti_dp.commands import scale_data
from noiseworks.rti_dp.schedule import check_schedule, choose_schedule
from noiseworks.rti_dp.suggestion import thin_steps
from torch.profiler import ProfilerActivity, profile


def linear():
    return DDPMScheduler(num_train_timesteps=100)


def small_native():
    return NativePolicy(
        PolicyConfig(obs_dim=2, horizon=4, n_action_steps=2, down_dims=(8,), step_embed_dim=8)
    )


def small_lerobot():
    """Return an object with the parts of a LeRobot policy that its adapter reads."""
    unet = torch.nn.Linear(3, 3)
    diffusion = torch.nn.Module()
    diffusion.unet = lambda x, k, global_cond: unet(x)
    diffusion.weights = unet
    diffusion.noise_scheduler = make_scheduler()
    diffusion._prepare_global_conditioning = lambda batch: batch["observation.state"].flatten(1)
    config = SimpleNamespace(
        horizon=8,
        n_obs_steps=2,
        n_action_steps=4,
        action_feature=SimpleNamespace(shape=(3,)),
        input_features={"observation.state": SimpleNamespace(shape=(5,))},
        image_features={},
    )
    config.beta_schedule, config.num_train_timesteps = "squaredcos_cap_v2", 100
    config.prediction_type, config.beta_start, config.beta_end = "epsilon", 1e-4, 0.02
    policy = torch.nn.Module()
    policy.config, policy.diffusion = config, diffusion
    return policy


@pytest.mark.parametrize("make", [small_native, small_lerobot])
def test_a_linear_schedule_on_a_cosine_checkpoint_is_refused_unless_forced(make):
    policy = make()
    RTIPolicy(policy)
    if hasattr(policy, "diffusion"):
        policy.diffusion.noise_scheduler = linear()
    else:
        policy.scheduler = linear()
    with pytest.raises(InputError, match=r"beta_schedule is 'linear'.*squaredcos_cap_v2"):
        RTIPolicy(policy)
    assert RTIPolicy(policy, (2, 1, 0), schedule="host").table.sigma[0] == pytest.approx(0.0300, abs=1e-4)


def test_linear100_repeats_the_published_evaluation_files():
    host = small_native()
    chosen = choose_schedule(host, "linear100")
    assert float(chosen.alphas_cumprod[99]) == pytest.approx(0.363563, abs=1e-6)
    assert RTIPolicy(host, (2, 1, 0), schedule="linear100").table.sigma[0] == pytest.approx(0.0300, abs=1e-4)


def test_a_schedule_that_keeps_signal_warns_where_nothing_is_known():
    with pytest.warns(UserWarning, match=r"0\.364"):
        check_schedule(linear(), {})
    with pytest.raises(InputError, match="num_train_timesteps"):
        check_schedule(make_scheduler(50), {"num_train_timesteps": 100})


def test_a_lerobot_policy_runs_and_is_left_as_it_was():
    policy = small_lerobot()
    before = {name: t.clone() for name, t in policy.state_dict().items()}
    names = set(vars(policy)), set(vars(policy.diffusion)), dict(vars(policy.config))
    obs = {"observation.state": torch.zeros(2, 5)}
    rti = RTIPolicy(policy, num_envs=2)
    for _ in range(2):
        assert rti.act(obs).shape == (2, 3)
    assert rti.stats.nfes == [100, 3]
    assert all(torch.equal(before[name], t) for name, t in policy.state_dict().items())
    assert names == (set(vars(policy)), set(vars(policy.diffusion)), dict(vars(policy.config)))


def test_the_real_lerobot_policy_runs_and_is_left_as_it_was():
    pytest.importorskip("lerobot")
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    features = {
        "observation.state": PolicyFeature(FeatureType.STATE, (5,)),
        "observation.environment_state": PolicyFeature(FeatureType.ENV, (4,)),
    }
    config = DiffusionConfig(
        input_features=features,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (3,))},
        down_dims=(32, 64),
        horizon=8,
        n_action_steps=4,
    )
    policy = DiffusionPolicy(config).eval()
    before = {name: t.clone() for name, t in policy.state_dict().items()}
    rti = RTIPolicy(policy, initial_steps=5)
    for _ in range(2):
        rti.act({"observation.state": torch.zeros(1, 5), "observation.environment_state": torch.zeros(1, 4)})
    assert rti.stats.nfes == [5, 3]
    assert all(torch.equal(before[name], t) for name, t in policy.state_dict().items())


def test_thin_lists_have_the_length_that_was_asked_for():
    assert thin_steps(2, 3) == thin_steps(2, 5) == (2, 1, 0)
    assert thin_steps(0, 1) == (0,)
    for start in range(2, 60):
        for nfe in range(2, start + 1):
            steps = thin_steps(start, nfe)
            assert (len(steps), steps[0], steps[-1]) == (nfe, start, 0)
            assert list(steps) == sorted(set(steps), reverse=True)
    gaps = -np.diff(thin_steps(80, 5))
    assert (np.diff(gaps) < 0).all()
    with pytest.raises(InputError, match="at least 2"):
        thin_steps(5, 1)


class Drifting(GaussianHost):
    """Plans are the clock of the observation, so a moved plan is off by what the clock moved in a step."""

    def denoise(self, x, k, cond):
        abar = self.scheduler.alphas_cumprod[torch.as_tensor(k)].reshape(-1, 1, 1)
        return (x - abar.sqrt() * cond[:, -1, None]) / (1 - abar).sqrt()


def recorded(drift, steps=6):
    clock = drift * np.arange(steps, dtype=np.float32)[:, None]
    obs = np.tile(clock, (3, 2))
    return Episodes(obs, obs, steps * np.arange(1, 4), np.zeros(3, np.int64))


def test_a_suggestion_starts_where_the_noise_covers_the_residual():
    host = Drifting(Gaussian(), action_dim=2, horizon=4, n_action_steps=2)
    abars, found = host.scheduler.alphas_cumprod, []
    for drift in (0.02, 0.1, 0.3):
        suggestion = suggest_steps(host, recorded(drift))
        assert suggestion.pairs == 15
        assert suggestion.covered
        assert suggestion.residual == pytest.approx((drift, drift), rel=1e-3)
        assert suggestion.quantile == pytest.approx(drift, rel=1e-3)
        k = suggestion.start
        assert (1 - abars[k]).sqrt() >= drift * 0.999 / abars[k].sqrt()
        assert k == 0 or (1 - abars[k - 1]).sqrt() < drift / abars[k - 1].sqrt()
        assert suggestion.steps == thin_steps(k, 3)
        found.append(k)
    assert found == sorted(set(found))
    assert suggest_steps(host, recorded(0.1), Choice(c=2.0)).start > suggest_steps(host, recorded(0.1)).start
    assert not suggest_steps(host, recorded(2.0)).covered


def test_suggestions_leave_out_discrete_dimensions():
    class Jumping(Drifting):
        def denoise(self, x, k, cond):
            return super().denoise(x, k, cond * torch.tensor([1.0, 10.0]))

    host = Jumping(Gaussian(), action_dim=2, horizon=4, n_action_steps=2)
    every, left_out = (
        suggest_steps(host, recorded(0.03), Choice(discrete=words)) for words in ("none", "1:clip")
    )
    assert left_out.residual == pytest.approx((0.03, 0.3), rel=1e-3)
    assert left_out.start < every.start
    with pytest.raises(InputError, match="leave no dimension"):
        suggest_steps(host, recorded(0.03), Choice(discrete="0,1:clip"))
    single = Episodes(
        np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32), np.array([1, 2]), np.zeros(2)
    )
    with pytest.raises(InputError, match="two steps"):
        suggest_steps(host, single)


def gripper_episodes():
    actions = np.array([[0.3, 1], [-0.2, -1], [0.9, 1]], np.float32)
    return Episodes(np.zeros((3, 2), np.float32), actions, np.array([3]), np.zeros(1, np.int64))


def test_scaling_divides_the_discrete_dimension_only():
    episodes = gripper_episodes()
    scaled = scale_dataset(episodes, [1], 10)
    np.testing.assert_allclose(scaled.actions[:, 1], [0.1, -0.1, 0.1], rtol=1e-6)
    np.testing.assert_array_equal(scaled.actions[:, 0], episodes.actions[:, 0])
    np.testing.assert_array_equal(episodes.actions[:, 1], [1, -1, 1])


@pytest.mark.parametrize(
    ("dims", "factor", "named"), [([1], 0, "factor"), ([2], 10, "0 to 1"), ([0], 10, "3 values")]
)
def test_scaling_refuses_what_is_not_discrete(dims, factor, named):
    with pytest.raises(InputError, match=named):
        scale_dataset(gripper_episodes(), dims, factor)


def test_data_are_not_scaled_twice(tmp_path):
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    gripper_episodes().save(first)
    assert scale_data(first, second, dims="-1")["dims"] == [1]
    assert Episodes.load(second).actions[0, 1] == pytest.approx(0.1)
    with pytest.raises(InputError, match="scaled already"):
        scale_data(second, tmp_path / "c.npz", dims="1")
    with pytest.raises(InputError, match="overwrite"):
        scale_data(first, first, dims="1")
    assert not (tmp_path / "c.npz").exists()


def test_hdf5_files_are_scaled_demonstration_by_demonstration(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for name, width in (("demo_0", 7), ("demo_1", 7)):
            file[f"data/{name}/actions"] = np.concatenate((np.full((4, width - 1), 0.5), np.ones((4, 1))), 1)
            file[f"data/{name}/obs/x"] = np.arange(4)
    assert scale_data(tmp_path / "a.hdf5", tmp_path / "b.hdf5", dims="6")["steps"] == 8
    with h5py.File(tmp_path / "b.hdf5") as file:
        np.testing.assert_allclose(file["data/demo_1/actions"][:, 6], 0.1)
        np.testing.assert_allclose(file["data/demo_1/actions"][:, :6], 0.5)
        np.testing.assert_array_equal(file["data/demo_1/obs/x"], np.arange(4))
    with pytest.raises(InputError, match="scaled already"):
        scale_data(tmp_path / "b.hdf5", tmp_path / "c.hdf5", dims="-1")
    assert not (tmp_path / "c.hdf5").exists()


@pytest.mark.parametrize("rows", [1, 3])
def test_the_loop_allocates_nothing_around_the_network(rows):
    host = small_native()
    policy = RTIPolicy(host, (9, 3, 0), cache=False, num_envs=3)
    kept = torch.zeros(rows, 4, 3)
    policy.loop.host = SimpleNamespace(denoise=lambda x, k, cond: kept)
    arguments = policy.table, None, rows, policy.generators[:rows]
    policy.loop.run(*arguments)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as traced:
        torch.zeros(64)
        policy.loop.run(*arguments)
    allocated = [e.self_cpu_memory_usage for e in traced.events() if e.self_cpu_memory_usage > 0]
    assert allocated == [256]  # the 64 numbers, which show that the count works


def test_any_host_object_is_taken_as_it_is():
    host = GaussianHost(Gaussian(), action_dim=2)
    assert as_host(host) is host
    assert RTIPolicy(host).host is host
    with pytest.raises(InputError, match="no diffusion policy"):
        RTIPolicy(object())
