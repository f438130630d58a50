"""Equality with diffusers' schedulers over whole runs, and both directions of conversion."""

import itertools

import diffusers
import pytest
import torch
from noiseworks.core import interop, steps
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.core.params import to_epsilon, to_x0
from noiseworks.core.schedules import flow, stable_diffusion, table_schedule, vp
from noiseworks.core.solvers import dpmpp_2m_step

SD_CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def model(x, t):
    """A smooth stand-in for a network, of order one."""
    return torch.tanh(x.flip(1)) * (0.5 + float(t) / 2000)


def start(seed=0):
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def host_run(scheduler, x, generator=None):
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = model(scaled, t)
        extra = {} if generator is None else {"generator": generator}
        x = scheduler.step(output, t, x, **extra).prev_sample
    return x


def assert_close(ours, theirs):
    """Equal to 1e-5 of the run's scale: that of its first latents or of its end, whichever is larger."""
    assert float((ours - theirs).abs().max()) <= 1e-5 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "options",
    [
        {"steps_offset": 1, "set_alpha_to_one": False},
        {"timestep_spacing": "trailing"},
        {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
        {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
        {"beta_schedule": "squaredcos_cap_v2"},
    ],
    ids=lambda o: ",".join(map(str, o.values())),
)
def test_ddim_runs_equal_diffusers(prediction_type, options):
    if prediction_type == "epsilon" and options.get("rescale_betas_zero_snr"):
        pytest.skip("an epsilon prediction says nothing at pure noise")
    config = SD_CONFIG | {"clip_sample": False, "prediction_type": prediction_type} | options
    scheduler = diffusers.DDIMScheduler(**config)
    scheduler.set_timesteps(20)
    timesteps, levels = interop.sampling_levels(scheduler)
    x = start()
    for t, level, next_level in zip(timesteps, levels[:-1], levels[1:], strict=True):
        x0 = to_x0(model(x, t), x, level, prediction_type)
        x = steps.ddim_step(x, x0, level, next_level).sample
    assert_close(x, host_run(scheduler, start()))


def test_stochastic_ddim_runs_equal_diffusers():
    scheduler = diffusers.DDIMScheduler(
        **SD_CONFIG, clip_sample=False, steps_offset=1, set_alpha_to_one=False
    )
    scheduler.set_timesteps(20)
    timesteps, levels = interop.sampling_levels(scheduler)
    ours, theirs = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    x = y = start()
    for t, level, next_level in zip(timesteps, levels[:-1], levels[1:], strict=True):
        x0 = to_x0(model(x, t), x, level, "epsilon")
        noise = torch.randn(x.shape, generator=ours)
        x = steps.ddim_step(x, x0, level, next_level, eta=0.8, noise=noise).sample
        y = scheduler.step(model(y, t), t, y, eta=0.8, generator=theirs).prev_sample
    assert_close(x, y)


@pytest.mark.parametrize(("host_variance", "variance"), [("fixed_small", "small"), ("fixed_large", "large")])
def test_ddpm_runs_equal_diffusers(host_variance, variance):
    scheduler = diffusers.DDPMScheduler(**SD_CONFIG, clip_sample=False, variance_type=host_variance)
    scheduler.set_timesteps(20)
    timesteps, levels = interop.sampling_levels(scheduler)
    generator = torch.Generator().manual_seed(5)
    x = start()
    for t, level, next_level in zip(timesteps, levels[:-1], levels[1:], strict=True):
        x0 = to_x0(model(x, t), x, level, "epsilon")
        noise = torch.randn(x.shape, generator=generator) if int(t) > 0 else None
        x = steps.ddpm_step(x, x0, level, next_level, variance=variance, noise=noise).sample
    assert_close(x, host_run(scheduler, start(), torch.Generator().manual_seed(5)))


@pytest.mark.parametrize(
    "options", [{}, {"timestep_spacing": "trailing"}, {"use_karras_sigmas": True}], ids=str
)
def test_euler_runs_equal_diffusers(options):
    scheduler = diffusers.EulerDiscreteScheduler(**SD_CONFIG, **options)
    scheduler.set_timesteps(20)
    sigmas = scheduler.sigmas.double()
    first = start() * scheduler.init_noise_sigma
    x = first
    for t, sigma, next_sigma in zip(scheduler.timesteps, sigmas[:-1], sigmas[1:], strict=True):
        x0 = x - sigma.float() * model(x * interop.input_scale(sigma).float(), t)
        x = steps.euler_step(x, x0, sigma, next_sigma).sample
    assert_close(x, host_run(scheduler, first))
    spacing = scheduler.config.timestep_spacing
    assert float(scheduler.init_noise_sigma) == pytest.approx(
        float(interop.init_noise_sigma(sigmas[0], spacing))
    )


def test_ancestral_euler_runs_equal_diffusers():
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**SD_CONFIG)
    scheduler.set_timesteps(20)
    sigmas = scheduler.sigmas.double()
    first = x = start() * scheduler.init_noise_sigma
    generator = torch.Generator().manual_seed(5)
    for t, sigma, next_sigma in zip(scheduler.timesteps, sigmas[:-1], sigmas[1:], strict=True):
        x0 = x - sigma.float() * model(x * interop.input_scale(sigma).float(), t)
        noise = torch.randn(x.shape, generator=generator)
        x = steps.euler_ancestral_step(x, x0, sigma, next_sigma, noise=noise).sample
    assert_close(x, host_run(scheduler, first, torch.Generator().manual_seed(5)))


def test_heun_runs_equal_diffusers():
    scheduler = diffusers.HeunDiscreteScheduler(**SD_CONFIG)
    scheduler.set_timesteps(10)
    first = x = start() * scheduler.init_noise_sigma
    sigmas = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1:-1:2], scheduler.sigmas[-1:]]).double()
    times = dict(zip(sigmas.tolist(), [scheduler.timesteps[0], *scheduler.timesteps[1::2]], strict=False))

    def denoise(y, sigma):
        return y - sigma.float() * model(y * interop.input_scale(sigma).float(), times[float(sigma)])

    for sigma, next_sigma in itertools.pairwise(sigmas):
        x = steps.heun_step(x, denoise(x, sigma), sigma, next_sigma, denoise).sample
    assert_close(x, host_run(scheduler, first))


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize("order", [1, 2])
def test_dpm_solver_runs_equal_diffusers(algorithm, order):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **SD_CONFIG, algorithm_type=algorithm, solver_order=order, use_karras_sigmas=True
    )
    scheduler.set_timesteps(20)
    timesteps, levels = interop.sampling_levels(scheduler)
    generator = torch.Generator().manual_seed(5)
    x, history = start(), None
    for t, level, next_level in zip(timesteps, levels[:-1], levels[1:], strict=True):
        x0 = to_x0(model(x, t), x, level, "epsilon")
        sde = algorithm.startswith("sde")
        noise = torch.randn(x.shape, generator=generator) if sde else None
        step, history = dpmpp_2m_step(x, x0, level, next_level, history, noise=noise, sde=sde)
        history = None if order == 1 else history
        x = step.sample
    assert_close(x, host_run(scheduler, start(), torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_runs_equal_diffusers(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(20)
    timesteps, levels = interop.sampling_levels(scheduler)
    x = start()
    for t, level, next_level in zip(timesteps, levels[:-1], levels[1:], strict=True):
        x = steps.flow_euler_step(x, model(x, t), level.sigma, next_level.sigma).sample
    assert_close(x, host_run(scheduler, start()))
    assert torch.allclose(interop.flow_match_sigmas(20, shift), scheduler.sigmas.double(), atol=1e-6)
    host = interop.from_scheduler(scheduler)
    assert (host.prediction_type, host.shift, host.is_flow) == ("flow_prediction", shift, True)
    assert torch.allclose(host.level(timesteps).sigma, scheduler.sigmas[:-1].double(), atol=1e-6)


def test_the_flow_grid_is_shifted_twice():
    expected = [1, 0.857692, 0.602151, 0.008929, 0]
    assert interop.flow_match_sigmas(4, 3.0).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
@pytest.mark.parametrize("zero", [False, True])
def test_tables_are_read_in_float64(kind, zero):
    config = {"beta_schedule": kind, "rescale_betas_zero_snr": zero}
    scheduler = diffusers.DDPMScheduler(**config)
    table = interop.from_scheduler(scheduler).schedule.alphas_cumprod
    assert table.dtype == torch.float64
    assert torch.allclose(table, scheduler.alphas_cumprod.double(), rtol=1e-4, atol=1e-6)
    assert not torch.equal(table, scheduler.alphas_cumprod.double())
    if not zero:
        ours = table_schedule("cosine" if kind == "squaredcos_cap_v2" else kind)
        assert torch.equal(table, ours.alphas_cumprod)


def test_a_table_replaced_by_hand_is_kept():
    scheduler = diffusers.DDIMScheduler(**SD_CONFIG)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod**2
    table = interop.from_scheduler(scheduler).schedule.alphas_cumprod
    assert torch.equal(table, scheduler.alphas_cumprod.double())


def test_the_final_level_follows_set_alpha_to_one():
    for to_one, wanted in ((True, 1.0), (False, 0.99915)):
        host = interop.from_scheduler(diffusers.DDIMScheduler(**SD_CONFIG, set_alpha_to_one=to_one))
        assert float(host.final_level.alpha**2) == pytest.approx(wanted, rel=1e-9)


def test_fractional_timesteps_lie_between_their_neighbours():
    scheduler = diffusers.EulerDiscreteScheduler(**SD_CONFIG)
    scheduler.set_timesteps(5)
    assert float(scheduler.timesteps[1]) == 749.25
    host = interop.from_scheduler(scheduler)
    low, middle, high = (float(host.level(t).sigma_ve) for t in (749, 749.25, 750))
    assert low < middle < high


@pytest.mark.parametrize(
    "scheduler_class",
    [
        diffusers.DDIMScheduler,
        diffusers.DDPMScheduler,
        diffusers.EulerDiscreteScheduler,
        diffusers.DPMSolverMultistepScheduler,
    ],
)
def test_schedules_survive_the_way_to_diffusers_and_back(scheduler_class):
    schedule = stable_diffusion()
    scheduler = interop.to_scheduler(schedule, scheduler_class, prediction_type="v_prediction")
    host = interop.from_scheduler(scheduler)
    assert host.prediction_type == "v_prediction"
    assert torch.allclose(host.schedule.alphas_cumprod, schedule.alphas_cumprod, rtol=1e-10)
    assert not scheduler.config.get("clip_sample", False)
    again = scheduler_class.from_config(dict(scheduler.config))
    assert torch.equal(again.alphas_cumprod, scheduler.alphas_cumprod)


def test_flows_survive_the_way_to_diffusers_and_back():
    scheduler = interop.to_scheduler(flow(3.0), diffusers.FlowMatchEulerDiscreteScheduler)
    assert interop.from_scheduler(scheduler).shift == pytest.approx(3.0)


def test_sigmas_of_the_exploding_view_equal_diffusers():
    scheduler = diffusers.EulerDiscreteScheduler(**SD_CONFIG)
    theirs = (1 / scheduler.alphas_cumprod - 1).sqrt().double()
    assert torch.allclose(interop.sigmas_ve(stable_diffusion()), theirs, rtol=1e-4)


def test_what_has_no_counterpart_is_refused():
    with pytest.raises(InputError, match="vp schedule has no counterpart in DDIMScheduler"):
        interop.to_scheduler(vp(), diffusers.DDIMScheduler)
    with pytest.raises(InputError, match="needs a flow schedule"):
        interop.to_scheduler(stable_diffusion(), diffusers.FlowMatchEulerDiscreteScheduler)
    with pytest.raises(InputError, match="set_timesteps"):
        interop.sampling_levels(diffusers.DDIMScheduler(**SD_CONFIG))
    with pytest.raises(UnsupportedHostError, match="no alphas_cumprod"):
        interop.from_scheduler(diffusers.ScoreSdeVeScheduler())
    heun = diffusers.HeunDiscreteScheduler(**SD_CONFIG)
    heun.set_timesteps(5)
    with pytest.raises(UnsupportedHostError, match="more than once a step"):
        interop.sampling_levels(heun)


def test_noise_predictions_equal_diffusers_add_noise():
    scheduler = diffusers.DDIMScheduler(**SD_CONFIG)
    host = interop.from_scheduler(scheduler)
    x0, noise, t = start(1), start(2), torch.tensor([3, 950])
    x = scheduler.add_noise(x0, noise, t)
    v = scheduler.get_velocity(x0, noise, t)
    assert_close(to_x0(v, x, host.level(t), "v_prediction"), x0)
    assert_close(to_epsilon(v, x, host.level(t), "v_prediction"), noise)
