from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.core.noise import SeedSpec, normal
from noiseworks.ldm.conditioning.conditioners import ClassConditioner
from noiseworks.ldm.diffusion.model import LatentModel
from noiseworks.ldm.diffusion.objective import make_scheduler
from noiseworks.ldm.diffusion.samplers import sample_latents, sampling_levels
from noiseworks.ldm.diffusion.sampling import constant_condition, sample
from noiseworks.ldm.diffusion.tiling import Tiles, overlap_add, tiled_decode, tiled_encode, window_weights
from noiseworks.ldm.options import SampleSettings
from torch import nn

VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (8, 8, 8),
    "norm_num_groups": 4,
}


@cache
def class_model():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=4,
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()
    vae = VQModel(latent_channels=3, num_vq_embeddings=16, **VAE).eval()
    return LatentModel(unet, vae, make_scheduler(), ClassConditioner(3, 16).eval(), 1.0)


class Linear(nn.Module):
    """A denoiser whose prediction is a fixed multiple of its input, in the input's precision."""

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, latents, timestep):
        return self.factor * latents


def linear_model(factor=0.7, **schedule):
    return LatentModel(Linear(factor), nn.Identity(), make_scheduler(**schedule))


def run(model, settings, shape=(2, 4, 4), **options):
    return sample_latents(model, lambda x, t: model.unet(x, t), shape, settings, **options)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0.0015, 0.0195, (0.9985, 0.115844491, 0.000142304)),
        (0.0015, 0.0155, (0.9985, 0.151077423, 0.000668665)),
        (0.0015, 0.0205, (0.9985, 0.108575996, 9.69109e-5)),
        (0.00085, 0.012, (0.99915, 0.277669650, 0.004660098)),
    ],
)
def test_alphas_cumprod_are_those_of_the_released_models(start, end, expected):
    found = make_scheduler(beta_start=start, beta_end=end).alphas_cumprod[[0, 499, 999]]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=2e-5, atol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize(("steps", "first", "last"), [(20, 951, 1), (30, 958, 1)])
def test_ddim_equals_the_diffusers_scheduler(prediction, steps, first, last):
    model = linear_model(prediction_type=prediction)
    theirs = DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )
    theirs.set_timesteps(steps)
    visited, _ = sampling_levels(model.scheduler.alphas_cumprod, SampleSettings(num_inference_steps=steps))
    assert visited.tolist() == theirs.timesteps.tolist()
    assert (len(visited), visited[0], visited[-1]) == (steps, first, last)
    inputs = []
    result = run(
        model,
        SampleSettings(num_inference_steps=steps),
        on_step=lambda i, t, x, x0: inputs.append(x.double()),
    )
    theirs.alphas_cumprod = theirs.alphas_cumprod.double()
    theirs.final_alpha_cumprod = theirs.alphas_cumprod[0]
    for before, after, t in zip(inputs, [*inputs[1:], result], visited, strict=True):
        expected = theirs.step(model.unet(before, t), t, before).prev_sample
        torch.testing.assert_close(after.double(), expected, atol=1e-6, rtol=2e-6)


def test_stochastic_ddim_adds_the_same_noise_as_the_diffusers_scheduler():
    model = linear_model()
    settings = SampleSettings(num_inference_steps=20, eta=0.8)
    inputs = []
    result = run(model, settings, on_step=lambda i, t, x, x0: inputs.append((t, x)))
    theirs = DDIMScheduler.from_config(model.scheduler.config)
    theirs.set_timesteps(20)
    keys = SeedSpec(0, 1).keys([0])
    for index, (t, before) in enumerate(inputs):
        noise = normal(keys, (2, 4, 4), counter0=index * 8)
        expected = theirs.step(
            model.unet(before, t).float(), t, before, eta=0.8, variance_noise=noise
        ).prev_sample
        after = inputs[index + 1][1] if index < 19 else result
        torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-5)


def test_ddpm_takes_every_step_of_the_posterior():
    model = linear_model(num_train_timesteps=40)
    inputs = []
    result = run(model, SampleSettings(sampler="ddpm"), on_step=lambda i, t, x, x0: inputs.append((t, x, x0)))
    assert [t for t, _, _ in inputs] == list(range(39, -1, -1))
    theirs = DDPMScheduler.from_config(model.scheduler.config, variance_type="fixed_small", clip_sample=False)
    keys = SeedSpec(0, 1).keys([0])
    for index, (t, before, _) in enumerate(inputs[:-1]):
        mean = theirs.step(model.unet(before, t).float(), t, before, generator=None)
        abar, previous = theirs.alphas_cumprod[t], theirs.alphas_cumprod[t - 1]
        beta = 1 - abar / previous
        x0 = mean.pred_original_sample
        mean = previous.sqrt() * beta / (1 - abar) * x0
        mean = mean + (abar / previous).sqrt() * (1 - previous) / (1 - abar) * before
        deviation = theirs._get_variance(t).sqrt()
        expected = mean + deviation * normal(keys, (2, 4, 4), counter0=index * 8)
        torch.testing.assert_close(inputs[index + 1][1], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(result, inputs[-1][2].float())


def test_plms_is_the_diffusers_scheduler():
    model = linear_model(0.3)
    result = run(model, SampleSettings(sampler="plms", num_inference_steps=10))
    theirs = PNDMScheduler.from_config(model.scheduler.config, skip_prk_steps=True)
    theirs.set_timesteps(10)
    x = normal(SeedSpec(0, 0).keys([0]), (2, 4, 4))
    for t in theirs.timesteps:
        x = theirs.step(model.unet(x, t).float(), t, x).prev_sample
    torch.testing.assert_close(result, x)


def test_sample_i_does_not_depend_on_the_batch():
    model = class_model()
    batch = {"label": torch.tensor([0, 1, 2])}
    settings = SampleSettings(num_inference_steps=4, eta=1.0, guidance_scale=3.0, seed=5)
    together = sample(model, batch, settings)
    apart = sample(model, batch, replace(settings, batch_size=1))
    torch.testing.assert_close(together.latents, apart.latents, atol=2e-5, rtol=2e-5)
    assert together.images.shape == (3, 3, 16, 16)
    assert together.images.abs().max() <= 1


def test_guidance_is_linear_in_the_two_predictions():
    model = class_model()
    batch = {"label": torch.tensor([1])}
    one = SampleSettings(num_inference_steps=1, guidance_scale=1.0)
    plain = sample(model, batch, settings=one).latents
    free = sample(model, {"label": torch.tensor([3])}, settings=one).latents
    guided = sample(model, batch, settings=SampleSettings(num_inference_steps=1, guidance_scale=2.5)).latents
    torch.testing.assert_close(guided, free + 2.5 * (plain - free), atol=1e-4, rtol=1e-4)


def test_cached_keys_and_values_leave_the_output_bit_equal():
    model = class_model()
    x, t, states = torch.randn(2, 3, 4, 4), torch.tensor(10), torch.randn(2, 1, 16)
    with torch.no_grad():
        plain = model.unet(x, t, states).sample
        with constant_condition(model.unet):
            assert torch.equal(model.unet(x, t, states).sample, plain)
            assert torch.equal(model.unet(x, t, states).sample, plain)
            other = model.unet(x, t, states + 1).sample
        assert torch.equal(model.unet(x, t, states + 1).sample, other)
        assert torch.equal(model.unet(x, t, states).sample, plain)


@pytest.mark.parametrize(("height", "width"), [(12, 12), (8, 20), (13, 9)])
def test_windows_are_a_partition_of_unity_and_keep_a_pointwise_map(height, width):
    maps = torch.randn(2, 3, height, width)
    result = overlap_add(lambda windows, rows: 2 * windows + 1, maps, Tiles(8, 4, 3))
    torch.testing.assert_close(result, 2 * maps + 1)
    ones = overlap_add(lambda windows, rows: torch.ones_like(windows), maps, Tiles(8, 4, 3))
    torch.testing.assert_close(ones, torch.ones_like(maps))


def test_window_weights_are_the_clipped_distance_to_the_border():
    weights = window_weights(5, 5)
    expected = torch.tensor(
        [
            [0.01, 0.01, 0.01, 0.01, 0.01],
            [0.01, 0.25, 0.25, 0.25, 0.01],
            [0.01, 0.25, 0.50, 0.25, 0.01],
            [0.01, 0.25, 0.25, 0.25, 0.01],
            [0.01, 0.01, 0.01, 0.01, 0.01],
        ]
    )
    torch.testing.assert_close(weights, expected)


def test_overlapping_windows_are_averaged_by_their_weights():
    maps = torch.arange(6.0).view(1, 1, 1, 6).expand(1, 1, 6, 6)
    result = overlap_add(lambda windows, rows: windows - windows[..., :1], maps, Tiles(4, 2, 8))
    weights = window_weights(4, 4)
    # Column 3, row 1: covered by the windows that start at columns 0 and 2 and rows 0.
    expected = (weights[1, 3] * 3 + weights[1, 1] * 1) / (weights[1, 3] + weights[1, 1])
    assert result[0, 0, 1, 3].item() == pytest.approx(expected.item())


def test_one_window_equals_no_tiles_and_a_larger_image_can_be_tiled():
    model = class_model()
    batch = {"label": torch.tensor([1])}
    whole = sample(model, batch, settings=SampleSettings(num_inference_steps=2))
    tiled = sample(model, batch, settings=SampleSettings(num_inference_steps=2, tile=4, tile_stride=2))
    assert torch.equal(whole.latents, tiled.latents)
    assert torch.equal(whole.images, tiled.images)
    large = SampleSettings(num_inference_steps=2, tile=4, tile_stride=2, guidance_scale=2.0)
    assert sample(model, batch, replace(large, height=24, width=40)).images.shape == (1, 3, 24, 40)


def test_tiled_first_stage_with_one_window_is_the_first_stage():
    torch.manual_seed(0)
    vae = AutoencoderKL(latent_channels=4, **VAE).eval()
    with torch.no_grad():
        images = torch.rand(1, 3, 32, 32) * 2 - 1
        latents = tiled_encode(vae, images, Tiles(8, 4), 4)
        torch.testing.assert_close(latents, vae.encode(images).latent_dist.mode())
        torch.testing.assert_close(tiled_decode(vae, latents, Tiles(8, 4), 4), vae.decode(latents).sample)
        assert tiled_decode(vae, latents, Tiles(4, 2), 4).shape == (1, 3, 32, 32)
        assert tiled_encode(vae, images, Tiles(4, 2), 4).shape == (1, 4, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": SampleSettings(height=20, width=16)}, "multiple of 8"),
        ({"settings": SampleSettings(num_inference_steps=1000)}, "below 1000"),
        ({"batch": {}}, "conditional"),
        ({"batch": {"label": torch.tensor([9])}}, r"0\.\.2"),
    ],
)
def test_bad_sampling_input_is_refused(options, message):
    options = {"batch": {"label": torch.tensor([1])}, **options}
    with pytest.raises(InputError, match=message):
        sample(class_model(), options.pop("batch"), **options)


def test_settings_that_do_nothing_are_refused():
    with pytest.raises(InputError, match="plms"):
        SampleSettings(sampler="plms", eta=0.5)
    first_stage = VQModel(latent_channels=3, num_vq_embeddings=16, **VAE)
    unconditional = LatentModel(
        UNet2DModel(
            4,
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            block_out_channels=(32,),
        ),
        first_stage,
        make_scheduler(),
    )
    with pytest.raises(InputError, match="conditional model"):
        sample(unconditional, None, SampleSettings(guidance_scale=2.0, height=32, width=32), num_samples=1)


def test_a_latent_that_is_not_finite_stops_the_run():
    with pytest.raises(NonFiniteError, match="latents is not finite at step 0"):
        run(linear_model(float("nan")), SampleSettings(num_inference_steps=3))
