"""EDM per position: Karras et al.'s algorithms written out, diffusers' own steps, and streams that run on them."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import EDMEulerScheduler
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.policies import LinearNormalizer, NativePolicy, PolicyConfig, make_scheduler
from noiseworks.streaming_dp import PerStepDDIM, PerStepEDM, StreamingHost, StreamingPolicy
from noiseworks.streaming_dp.edm import edm_loss, training_sigmas
from noiseworks.streaming_dp.regimes import karras_timesteps
from noiseworks.streaming_dp.solvers import per_step_scheduler

DATA, CHURN = 0.5, 60.0
SIZES = {"obs_dim": 3, "action_dim": 2, "horizon": 8, "down_dims": (8, 16), "kernel_size": 3}
SIZES |= {"step_embed_dim": 16, "n_action_steps": 1, "num_train_timesteps": 12}


def grid(levels, low=0.002, high=80.0, rho=7):
    """Karras et al. 2022, eq. 5, from the least sigma on."""
    if levels == 1:
        return [high]
    ends = high ** (1 / rho), low ** (1 / rho)
    return [(ends[0] + i / (levels - 1) * (ends[1] - ends[0])) ** rho for i in range(levels)][::-1]


def mended(x, sigma, mean=0.3, std=0.2):
    """The exact D for data N(mean, std^2)."""
    return (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)


def network(x, sigma, clean=mended):
    """The F whose preconditioning gives D, from the equations of table 1."""
    scale = (sigma**2 + DATA**2) ** 0.5
    return (clean(x, sigma) - DATA**2 / scale**2 * x) * scale / (sigma * DATA)


def scheduler(levels, churn=0.0, **config):
    made = PerStepEDM(num_train_timesteps=100, **config)
    made.set_timesteps(levels, s_churn=churn)
    return made


@pytest.mark.parametrize("churn", [0.0, CHURN])
def test_every_position_follows_karras_algorithm_written_out_in_float64(churn):
    count, starts = 9, [8, 3, 0, -1]
    ours, sigmas = scheduler(count, churn), grid(count)
    gamma = [min(churn / count, math.sqrt(2) - 1) if 0.03 <= s <= 25 else 0.0 for s in sigmas]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 1, generator=generator, dtype=torch.float64)
    noises = [torch.randn(2, 4, 1, generator=generator) for _ in range(count + 1)]
    levels = torch.tensor([starts, starts])
    drawn = torch.Generator().manual_seed(0)
    torch.randn(2, 4, 1, generator=drawn, dtype=torch.float64)

    expected = x.clone()
    for row in range(2):
        for position, start in enumerate(starts):
            value = x[row, position, 0].item()
            for call, level in enumerate(range(start, -1, -1)):
                # Algorithm 2, lines 4 to 8, from the sigma that churn has reached; its noise is drawn one step early.
                hat = sigmas[level] * (1 + gamma[level])
                below = sigmas[level - 1] if level else 0.0
                slope = (value - mended(value, hat)) / hat
                value += (below - hat) * slope
                if level:
                    added = math.sqrt((below * (1 + gamma[level - 1])) ** 2 - below**2)
                    value += 1.005 * added * noises[call][row, position, 0].item()
            expected[row, position, 0] = value

    found = x
    while bool((levels > -1).any()):
        hat = ours.hat_sigmas[levels + 1][..., None]
        output = network(found, hat.clamp(min=0.002))
        found = ours.step(output, levels, found, generator=drawn).prev_sample
        levels = (levels - 1).clamp(min=-1)
    assert torch.equal(found[:, 3], x[:, 3])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_equal_levels_are_diffusers_own_steps(kind):
    theirs, ours = EDMEulerScheduler(prediction_type=kind), scheduler(10, prediction_type=kind)
    theirs.set_timesteps(10)
    generator = torch.Generator().manual_seed(1)
    x = a = 80 * torch.randn(2, 3, 2, generator=generator)
    for level, step in zip(range(9, -1, -1), theirs.timesteps, strict=True):
        scaled, output = theirs.scale_model_input(a, step), torch.randn(2, 3, 2, generator=generator)
        sigma = ours.level_sigmas[level + 1]
        torch.testing.assert_close(ours.precondition_inputs(x, sigma).float(), scaled, rtol=1e-6, atol=1e-6)
        a = theirs.step(output, step, a).prev_sample
        x = ours.step(output, torch.full((2, 3), level), x).prev_sample
        torch.testing.assert_close(x, a, rtol=1e-6, atol=1e-6)


class Host:
    """Actions N(0.3, 0.2^2), whatever is observed, on an EDM schedule; it reads labels as a network does."""

    horizon, n_obs_steps, n_action_steps, action_dim = 6, 2, 1, 2

    def __init__(self):
        self.scheduler = EDMEulerScheduler(num_train_timesteps=100)
        self.normalizer = LinearNormalizer.identity(2)

    def encode(self, obs):
        return obs["obs"].flatten(1)

    def denoise(self, x, k, cond):
        low, high = math.log(0.002), math.log(80)
        sigma = (low + k.double() / 99 * (high - low)).exp()[..., None]
        scale = (sigma**2 + DATA**2).sqrt()
        return network(x.double() * scale, sigma).float()


@pytest.mark.parametrize("churn", [0.0, CHURN])
def test_a_stream_in_the_networks_units_is_the_concatenation_of_plain_steps(churn):
    host, count, cycles = Host(), 10, 12
    start = torch.tensor([0.4, -0.2])
    own = {"buffer_init": "constant", "constant": start.tolist()}
    policy = StreamingPolicy(host, num_levels=count, churn=churn, **own)
    policy.reset([0], [7])
    obs = {"obs": torch.zeros(1, 3)}
    found = torch.stack([policy.act(obs)[0] for _ in range(cycles)])

    ours, spec, generator = scheduler(count, churn), policy.spec, torch.Generator().manual_seed(7)
    levels, scale = torch.tensor([spec.buffer]), (ours.hat_sigmas**2 + DATA**2).sqrt()
    std = (ours.level_sigmas**2 + ours.churn**2).sqrt()

    def at(values):
        return values[levels + 1][..., None].float()

    def noised(clean, noise, part=slice(None)):
        return clean + std[levels[:, part] + 1][..., None].float() * noise

    x = noised(start.expand(1, 6, 2), torch.randn(1, 6, 2, generator=generator))
    fresh = []
    for _ in range(cycles):
        while levels[0, 1] > -1:
            output = host.denoise(x / at(scale), ours.labels(at(ours.hat_sigmas)[..., 0]), None)
            x = ours.step(output, levels, x, generator=[generator]).prev_sample
            levels = (levels - 1).clamp(min=-1)
        fresh.append(x[0, 1])
        new = torch.randn(1, 1, 2, generator=generator) * scale[-1].float()
        x, levels = torch.cat((x[:, 1:], new), 1), torch.cat((levels[:, 1:], torch.tensor([[count - 1]])), 1)
        levels[:, 0] = levels[:, 1]
        x[:, :1] = noised(x[:, :1], torch.randn(1, 1, 2, generator=generator), slice(1))
    torch.testing.assert_close(found, torch.stack(fresh), rtol=1e-3, atol=1e-4)


def test_the_stream_of_a_gaussian_is_the_exact_image_of_its_noise():
    """With the exact D, a step to sigma' multiplies x - mean by (s^2 + sigma sigma') / (s^2 + sigma^2)."""
    count, policy = 10, StreamingPolicy(Host(), num_levels=10, num_envs=2)
    policy.reset(seeds=[1, 2])
    obs, generator = {"obs": torch.zeros(2, 3)}, torch.Generator().manual_seed(2)
    found = torch.stack([policy.act(obs)[1] for _ in range(9)])
    torch.randn(6, 2, generator=generator)
    drawn = []  # of a replan: the new last position, then the past's noise
    for _ in range(8):
        drawn.append(torch.randn(1, 2, generator=generator)[0])
        torch.randn(1, 2, generator=generator)
    sigmas = [0.0, *grid(count)]
    factor = math.prod((0.04 + above * below) / (0.04 + above**2) for below, above in pairwise(sigmas))
    start = math.sqrt(80**2 + DATA**2)
    # What the i-th replan appends is executed five replans later.
    expected = torch.stack([0.3 + (start * z - 0.3) * factor for z in drawn[:4]])
    torch.testing.assert_close(found[5:9], expected, rtol=1e-3, atol=1e-4)


def small(**edm):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        normal = LinearNormalizer(torch.tensor([2.0, 0.5]), torch.tensor([0.1, -0.3]))
        return StreamingHost(PolicyConfig(**SIZES), None, normal, edm=edm)


def test_the_loss_weighs_the_denoised_error_as_karras_does():
    host, generator = small(), torch.Generator().manual_seed(0)
    ours = per_step_scheduler(host.scheduler, None, 12)
    batch = {
        name: torch.rand(3, n, d, generator=generator) for name, n, d in (("obs", 2, 3), ("action", 8, 2))
    }
    noise, levels = torch.randn(3, 8, 2, generator=generator), torch.randint(12, (3, 8), generator=generator)
    sigmas = training_sigmas(ours, levels, "chunk_wise", generator)
    assert sigmas[0].tolist() == pytest.approx([grid(12)[level] for level in levels[0].tolist()])
    found = edm_loss(host, ours, batch, sigmas, noise)
    clean = (batch["action"] * torch.tensor([2.0, 0.5]) + torch.tensor([0.1, -0.3])).double()
    sigma = sigmas[..., None].double()
    x, scale = clean + sigma * noise, (sigma**2 + DATA**2).sqrt()
    labels = 11 * (sigma[..., 0] / 0.002).log() / math.log(80 / 0.002)
    output = host.net((x / scale).float(), labels.float(), global_cond=batch["obs"].flatten(1)).double()
    mended = DATA**2 / scale**2 * x + sigma * DATA / scale * output
    expected = ((mended - clean) ** 2 * scale**2 / (sigma * DATA) ** 2).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)

    drawn = training_sigmas(ours, torch.zeros(200, 500), "random", generator)
    logs = drawn.log()
    assert (logs.mean().item(), logs.std().item()) == pytest.approx((-1.2, 1.2), abs=0.02)
    assert 0.002 <= drawn.min().item() < drawn.max().item() <= 80


def test_an_edm_policy_comes_back_with_its_schedule_and_has_one_solver(tmp_path):
    host = small(sigma_data=0.4, sigma_max=20.0)
    host.save_pretrained(tmp_path / "policy")
    loaded = StreamingHost.from_pretrained(tmp_path / "policy")
    for name in ("sigma_min", "sigma_max", "sigma_data", "rho", "prediction_type", "num_train_timesteps"):
        assert loaded.scheduler.config[name] == host.scheduler.config[name]
    obs = {"obs": torch.zeros(1, 3)}
    first, second = (StreamingPolicy(one, churn=5.0) for one in (host, loaded))
    assert torch.equal(first.act(obs), second.act(obs))
    with pytest.raises(InputError, match="karras"):
        StreamingPolicy(host, solver="ddim")
    with pytest.raises(InputError, match="churn"):
        StreamingPolicy(host, churn=-1.0)
    host.impose = print
    with pytest.raises(UnsupportedHostError, match="inpainting"):
        StreamingPolicy(host)
    with pytest.raises(UnsupportedHostError, match="final_sigmas_type"):
        scheduler(5, final_sigmas_type="sigma_min")
    with pytest.raises(InputError, match="churn belongs"):
        per_step_scheduler(make_scheduler(100), "karras", 10, 1.0)


def test_karras_grid_of_a_discrete_schedule_and_ddim_on_it_is_eulers_step_in_sigma():
    made = make_scheduler(100, clip_sample=False)
    bar = made.alphas_cumprod.double()
    sigma = ((1 - bar) / bar).sqrt()
    steps = karras_timesteps(bar, 6)
    wanted = [int((sigma - one).abs().argmin()) for one in grid(6, sigma[0].item())]
    assert (steps.tolist()[:5], steps[5].item(), wanted[5]) == (wanted[:5], 99, 98)
    assert karras_timesteps(bar, 1).tolist() == [99]
    assert karras_timesteps(bar, 100).tolist() == list(range(100))
    crowded = karras_timesteps(bar, 80)
    assert (crowded[-1].item(), bool((crowded.diff() > 0).all())) == (99, True)

    ours = per_step_scheduler(made, "karras", 6)
    assert isinstance(ours, PerStepDDIM)
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(2, 4, 2, generator=generator) for _ in range(2))
    places = torch.tensor([[1, 2, 3, 5]]).expand(2, 4)
    now, then = steps[places], steps[places - 1]
    found = ours.step(noise, now, x).prev_sample.double()
    scaled = x / bar[now][..., None].sqrt() + (sigma[then] - sigma[now])[..., None] * noise
    torch.testing.assert_close(found, scaled * bar[then][..., None].sqrt(), rtol=1e-4, atol=1e-4)


def test_an_ordinary_policys_conversion_streams_on_karras_grid():
    from noiseworks.streaming_dp import convert

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        host = convert(NativePolicy(PolicyConfig(**SIZES)))
    policy = StreamingPolicy(host, solver="karras", num_levels=9)
    assert bool(policy.act({"obs": torch.zeros(1, 3)}).isfinite().all())
    assert (
        policy.scheduler.timesteps.flip(0).tolist()
        == karras_timesteps(host.scheduler.alphas_cumprod, 9).tolist()
    )
