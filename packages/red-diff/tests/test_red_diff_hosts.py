"""Pipelines as priors: what they predict is what the host's own network says, and the host stays the host."""

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.diffusers_hosts import tiny_pipeline
from noiseworks.red_diff import Degradation, Plan, RedDiff, measure, operator_of, prior_of, restore
from noiseworks.red_diff.diffusers import image_shape, on_host, to_images

HOSTS = ("ddpm", "ddim", "sd", "dit")


def host(kind):
    if kind not in ("ddpm", "ddim"):
        return tiny_pipeline(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=8, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        )  # fmt: skip
    pipe = DDPMPipeline(unet, DDPMScheduler()) if kind == "ddpm" else DDIMPipeline(unet, DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe, kind):
    own = {"sd": {"prompt": "a red circle"}, "dit": {"class_labels": [3]}}.get(kind, {"batch_size": 1})
    generator = torch.Generator().manual_seed(0)
    return torch.as_tensor(pipe(**own, num_inference_steps=2, generator=generator, output_type="np").images)


@pytest.mark.parametrize("kind", HOSTS)
def test_a_pipeline_is_a_prior_and_stays_what_it_was(kind):
    pipe = host(kind)
    before = drawn(pipe, kind)
    prior = prior_of(pipe, "7" if kind == "dit" else "", 1.0)
    x, t = torch.randn(2, *prior.shape, generator=torch.Generator().manual_seed(1)), 300
    with torch.no_grad():
        if kind == "dit":
            labels = torch.tensor([7, 7])
            own = pipe.transformer(x, timestep=torch.tensor([t, t]), class_labels=labels).sample[:, :4]
        elif kind == "sd":
            text = pipe.encode_prompt("", "cpu", 2, False)[0]
            own = pipe.unet(x, t, encoder_hidden_states=text).sample
        else:
            own = pipe.unet(x, t).sample
        torch.testing.assert_close(prior.epsilon(x, t), own, rtol=1e-4, atol=1e-5)
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
    with pytest.raises(UnsupportedHostError, match="DiTPipeline"):
        prior_of(tiny_pipeline("pixart"))
    with pytest.raises(UnsupportedHostError, match="flow"):
        prior_of(tiny_pipeline("sd3"))
    for wrong in ("dog", "1000"):
        with pytest.raises(InputError, match="0 to 999"):
            prior_of(host("dit"), wrong)
