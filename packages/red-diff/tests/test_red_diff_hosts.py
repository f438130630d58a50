"""Pipelines as priors: what they predict is what the host's own network says, and the host stays the host."""

import pytest
import torch
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.diffusers_hosts import (
    guided_prediction,
    latents_of,
    record_step,
    tiny_inputs,
    tiny_pipeline,
    tiny_pixel_pipeline,
    to_x0,
)
from noiseworks.red_diff import Degradation, Plan, RedDiff, measure, operator_of, prior_of, restore
from noiseworks.red_diff.diffusers import image_shape, on_host, to_images

HOSTS = ("ddpm", "ddim", "sd", "sdxl", "sd3", "pixart", "dit")


def host(kind):
    return tiny_pixel_pipeline(kind) if kind in ("ddpm", "ddim") else tiny_pipeline(kind)


def drawn(pipe, kind):
    own = {"batch_size": 1} if kind in ("ddpm", "ddim") else tiny_inputs(kind, 1)
    generator = torch.Generator().manual_seed(0)
    return torch.as_tensor(pipe(**own, num_inference_steps=2, generator=generator, output_type="np").images)


def seen(pipe, kind, guidance_scale):
    """Return a state of the host's own run, its timestep, and the guided prediction that the host makes of it."""
    own = {**tiny_inputs(kind, 1, guidance_scale), "num_inference_steps": 4}
    own = {
        k: v for k, v in own.items() if k not in ("height", "width", "max_sequence_length", "clean_caption")
    }
    (found,) = record_step(pipe, {**own, "generator": torch.Generator().manual_seed(0)}, step=1)
    call, prediction = found
    return latents_of(call), call.timestep, guided_prediction(call, prediction)


@pytest.mark.parametrize("kind", HOSTS)
def test_a_pipeline_is_a_prior_and_stays_what_it_was(kind):
    pipe = host(kind)
    before = drawn(pipe, kind)
    if kind in ("ddpm", "ddim"):
        prior = prior_of(pipe)
        x, t = torch.randn(1, *prior.shape, generator=torch.Generator().manual_seed(1)), 300
        with torch.no_grad():
            expected = pipe.unet(x, t).sample
    else:
        prompt = "0" if kind == "dit" else tiny_inputs(kind, 1)["prompt"][0]
        prior = prior_of(pipe, prompt, 4.0)
        x, t, expected = seen(pipe, kind, 4.0)
    if kind == "sd3":  # the table's index whose ratio of noise and signal is the flow's
        noise = t / 1000
        x0, level = to_x0(expected, x, 1 - noise, noise, "flow_prediction"), prior.schedule
        ratios = torch.stack([level.level(i).sigma_ve for i in range(1000)])
        t = int((ratios - noise / (1 - noise)).abs().argmin())
        alpha, sigma = prior.level(t)
        x = x * (alpha + sigma).float()
        with torch.no_grad():
            found = (x - sigma.float() * prior.epsilon(torch.cat([x, x]), t)[1:]) / alpha.float()
        torch.testing.assert_close(found, x0, rtol=0.02, atol=0.05)  # the table's indices are that far apart
    else:
        with torch.no_grad():
            found = prior.epsilon(torch.cat([x, x]), int(t))
        torch.testing.assert_close(found[1:], expected[:, : len(x[0])], rtol=1e-3, atol=1e-4)
    degraded = operator_of(Degradation(task="hdr"), image_shape(pipe))
    operator = on_host(degraded, pipe)
    y = measure(degraded, torch.zeros(1, *image_shape(pipe)), 0.05, seeds=[0])
    found = restore(prior, operator, y, Plan(settings=RedDiff(num_steps=2)))
    assert to_images(operator, found.images).shape == (1, *image_shape(pipe))
    assert bool(found.images.isfinite().all())
    assert torch.equal(drawn(pipe, kind), before)


def test_guidance_is_the_hosts_formula():
    pipe = host("dit")
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        none, some, guided = (prior_of(pipe, *given).epsilon(x, 500) for given in ((), ("7",), ("7", 3.0)))
        torch.testing.assert_close(guided, none + 3 * (some - none), rtol=1e-4, atol=1e-4)


def test_other_hosts_and_texts_for_labels_are_refused():
    with pytest.raises(UnsupportedHostError, match="not with FluxPipeline"):
        prior_of(tiny_pipeline("flux"))
    for wrong in ("dog", "1000"):
        with pytest.raises(InputError, match="0 to 999"):
            prior_of(host("dit"), wrong)
