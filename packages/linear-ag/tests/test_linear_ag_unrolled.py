"""The relaxed search through every family's own loop: one-hot weights are policies, gradients are right."""

from functools import cache

import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.attachments import attached_to
from noiseworks.kits.diffusers_hosts import CallSampling, denoiser_of, tiny_inputs, tiny_pipeline
from noiseworks.linear_ag import FixedPolicy
from noiseworks.linear_ag.options import SearchSettings
from noiseworks.linear_ag.policy_search import search_policy, unrolled
from noiseworks.linear_ag.sampling import sample_latents

STEPS, SCALE, BATCH = 3, 4.0, 2


@cache
def make_host(family):
    """Return a tiny pipeline, its family, its prompts and how to draw from it."""
    inputs = tiny_inputs(family, BATCH, SCALE)
    prompts = inputs.pop("class_labels" if family == "dit" else "prompt")
    for name in ("guidance_scale", "true_cfg_scale", "negative_prompt"):
        inputs.pop(name, None)
    pipe = tiny_pipeline(family)
    if family == "dit":  # clipped pixels have kinks, which finite differences step across
        pipe.scheduler.register_to_config(clip_sample=False)
    return pipe, family, prompts, CallSampling(STEPS, SCALE, batch_size=BATCH, extra=inputs)


@pytest.fixture(scope="module", params=("sd", "flux", "dit", "instruct-pix2pix"))
def host(request):
    return make_host(request.param)


def one_hot(digits, order):
    return torch.eye(len(order))[[order.index(digit) for digit in digits]]


def test_one_hot_weights_give_the_policys_samples(host):
    pipe, family, prompts, sampling = host
    order = "0152" if family == "instruct-pix2pix" else "012"
    tried = ["221"] + (["012"] if family != "flux" else []) + (["251"] if "5" in order else [])
    with unrolled(pipe, prompts, sampling, (SCALE,)) as draw:
        found = [draw(one_hot(digits, order), slice(0, BATCH)) for digits in tried]
    for digits, latents in zip(tried, found, strict=True):
        expected = sample_latents(pipe, prompts, sampling, FixedPolicy(actions=digits))
        assert float((latents - expected).abs().max()) < 1e-3 * float(expected.abs().max())
    assert attached_to(denoiser_of(pipe)) == ()


def test_gradients_reach_the_weights_of_every_step(host):
    """Against central differences of the same sampler."""
    pipe, family, prompts, sampling = host
    options = 4 if family == "instruct-pix2pix" else 3
    weights = torch.full((STEPS, options), 1 / options, requires_grad=True)
    direction = torch.randn(STEPS, options, generator=torch.Generator().manual_seed(0))
    with unrolled(pipe, prompts, sampling, (SCALE,)) as draw:

        def loss(values):
            return draw(values, slice(0, BATCH)).double().square().mean()

        (gradient,) = torch.autograd.grad(loss(weights), weights)
        with torch.no_grad():
            ends = [loss(weights + sign * 0.01 * direction) for sign in (1, -1)]
    assert bool((gradient.abs().sum(dim=1) > 0).all())
    assert float((gradient * direction).sum()) == pytest.approx(float(ends[0] - ends[1]) / 0.02, rel=0.05)


def test_every_family_can_be_searched(host):
    pipe, family, prompts, sampling = host
    settings = SearchSettings(scales=(SCALE,), budget=4.0, updates=1)
    digits = {"flux": "12", "instruct-pix2pix": "0125"}.get(family, "012")
    found = search_policy(pipe, prompts, sampling, settings)
    assert len(found.actions) == STEPS
    assert set(found.actions) <= set(digits)
    sample_latents(pipe, prompts, sampling, found)  # the host can carry it out


def test_three_predictions_cost_three():
    pipe, _, prompts, sampling = make_host("instruct-pix2pix")
    found = search_policy(pipe, prompts, sampling, SearchSettings("truncation", budget=7.0))
    assert found.actions == "221"
    with pytest.raises(InputError, match="scales must be"):
        search_policy(pipe, prompts, sampling, SearchSettings(scales=(3.0,)))


def test_images_can_be_compared_in_place_of_latents():
    pipe, _, prompts, sampling = make_host("sd")
    with unrolled(pipe, prompts, sampling, (SCALE,), "pt") as draw:
        weights = torch.full((STEPS, 3), 1 / 3, requires_grad=True)
        images = draw(weights, slice(0, BATCH))
        (gradient,) = torch.autograd.grad(images.square().mean(), weights)
        guided = draw(one_hot("222", "012"), slice(0, BATCH))
    assert bool((gradient.abs().sum(dim=1) > 0).all())
    expected = sample_latents(pipe, prompts, sampling, FixedPolicy(actions="222"), output_type="pt")
    assert guided.shape == expected.shape == (BATCH, 3, 32, 32)
    torch.testing.assert_close(guided, expected, rtol=1e-3, atol=1e-3)
    settings = SearchSettings(scales=(SCALE,), updates=1, compare="image")
    assert len(search_policy(pipe, prompts, sampling, settings).actions) == STEPS
