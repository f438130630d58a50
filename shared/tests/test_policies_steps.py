"""The lean loop: diffusers' samplers to the bit, nothing allocated around the network, modulations from a table."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.policies import (
    DiffusionPolicy,
    NativePolicy,
    PolicyConfig,
    film_table,
    make_scheduler,
    sampler_table,
)
from torch.profiler import ProfilerActivity, profile

SIZES = {"obs_dim": 4, "action_dim": 3, "horizon": 8, "n_action_steps": 4, "num_train_timesteps": 20}


def small(kind="epsilon", **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"down_dims": (8, 16), "step_embed_dim": 8, "prediction_type": kind}
        host = NativePolicy(PolicyConfig(**SIZES, **sizes)).eval()
    host.scheduler = DDPMScheduler.from_config(host.scheduler.config, **changes)
    return host


def observations(rows=3):
    return {"obs": torch.randn(rows, 2, 4, generator=torch.Generator().manual_seed(7))}


def seeded(rows=3):
    return [torch.Generator().manual_seed(row) for row in range(rows)]


@torch.inference_mode()
def theirs(host, sampler, generators, calls=None):
    """The run of a diffusers scheduler on a host, written out."""
    cond, rows = host.encode(observations()), len(generators)
    x = torch.stack([torch.randn(8, 3, generator=generator) for generator in generators])
    for k in sampler.timesteps if calls is None else sampler.timesteps[-calls:]:
        own = {"generator": generators} if isinstance(sampler, DDPMScheduler) else {}
        x = sampler.step(host.denoise(x, k.expand(rows), cond), k, x, **own).prev_sample
    return x


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large"])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("steps", [20, 5])
def test_ancestral_samples_are_those_of_diffusers_bit_for_bit(kind, variance, steps):
    host = small(kind, variance_type=variance)
    sampler = DDPMScheduler.from_config(host.scheduler.config)
    sampler.set_timesteps(steps)
    found = DiffusionPolicy(host, num_inference_steps=steps).predict_chunk(observations(), seeded())
    exact = 0 if kind != "v_prediction" else 1e-5
    torch.testing.assert_close(found.prediction, theirs(host, sampler, seeded()), rtol=0, atol=exact)
    assert found.nfe == steps


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("to_one", [True, False])
def test_deterministic_samples_are_those_of_diffusers(kind, spacing, to_one):
    host = small(kind)
    host.scheduler = DDIMScheduler.from_config(
        host.scheduler.config, timestep_spacing=spacing, set_alpha_to_one=to_one
    )
    sampler = DDIMScheduler.from_config(host.scheduler.config)
    sampler.set_timesteps(6)
    policy = DiffusionPolicy(host, solver="ddim", num_inference_steps=6)
    assert list(policy.table.timesteps) == sampler.timesteps.tolist()
    found = policy.predict_chunk(observations(), seeded()).prediction
    # Rounding differs where eps is a combination of sample and output, and the network amplifies it.
    torch.testing.assert_close(found, theirs(host, sampler, seeded()), rtol=0, atol=5e-5)


def test_unclipped_schedules_and_other_bounds_are_kept():
    for changes in ({"clip_sample": False}, {"clip_sample_range": 0.3}):
        host = small(**changes)
        sampler = DDPMScheduler.from_config(host.scheduler.config)
        found = DiffusionPolicy(host).predict_chunk(observations(), seeded()).prediction
        assert torch.equal(found, theirs(host, sampler, seeded()))


def test_a_table_of_ones_own_is_run_from_fresh_noise():
    host = small()
    sampler = DDPMScheduler.from_config(host.scheduler.config)
    last = sampler_table(host.scheduler, "ddpm").last(4)
    assert last.timesteps == (3, 2, 1, 0)
    found = DiffusionPolicy(host, table=last).predict_chunk(observations(), seeded())
    assert torch.equal(found.prediction, theirs(host, sampler, seeded(), 4))
    assert found.nfe == 4
    with pytest.raises(InputError, match="not both"):
        DiffusionPolicy(host, table=last, num_inference_steps=4)
    with pytest.raises(InputError, match="at most 20"):
        sampler_table(host.scheduler, "ddpm").last(21)


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_a_step_allocates_nothing_but_what_the_network_does(solver):
    host = small()
    policy = DiffusionPolicy(host, solver=solver, num_envs=3)
    kept = torch.zeros(3, 8, 3)
    policy.loop.host = SimpleNamespace(denoise=lambda x, k, cond: kept)
    policy.loop.run(policy.table, None, 3, policy.generators)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as traced:
        torch.zeros(64)
        policy.loop.run(policy.table, None, 3, policy.generators)
    allocated = [e.self_cpu_memory_usage for e in traced.events() if e.self_cpu_memory_usage > 0]
    assert allocated == [256]  # the 64 numbers, which show that the count works


def test_modulations_from_a_table_change_only_rounding():
    host = small()
    plain, cached = DiffusionPolicy(host), DiffusionPolicy(host, cache=True)
    assert plain.films is None
    assert cached.films is not None
    found = [policy.predict_chunk(observations(), seeded()).prediction for policy in (plain, cached)]
    torch.testing.assert_close(*found, rtol=0, atol=1e-4)
    assert not torch.equal(*found)


def test_a_network_that_something_hangs_on_has_no_table():
    host = small()
    handle = host.net.mid_modules[0].register_forward_hook(lambda *_: None)
    assert film_table(host) is None
    handle.remove()
    assert film_table(host) is not None
    host.net.forward = host.net.forward
    assert film_table(host) is None
    assert film_table(SimpleNamespace(net=small().net)) is None


def test_a_batch_that_grows_and_a_network_of_another_type_get_their_buffers():
    host = small()
    policy = DiffusionPolicy(host, num_inference_steps=2)
    three = policy.predict_chunk(observations(), seeded()).prediction
    assert torch.equal(policy.predict_chunk(observations(), seeded()).prediction, three)
    host.denoise = lambda x, k, cond: x * 0.5
    host.net.half()
    half = policy.predict_chunk(observations(), seeded()).prediction
    assert policy.loop.dtype == torch.float16
    assert half.dtype == torch.float32


def test_schedulers_with_another_step_are_refused():
    for changes, named in (
        ({"thresholding": True}, "thresholding"),
        ({"variance_type": "learned"}, "learned"),
    ):
        with pytest.raises(UnsupportedHostError, match=named):
            DiffusionPolicy(small(**changes))
    host = small()
    host.scheduler = object()
    with pytest.raises(UnsupportedHostError, match="alphas_cumprod"):
        DiffusionPolicy(host)
    assert len(sampler_table(make_scheduler(), "ddim", 10)) == 10
