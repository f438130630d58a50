"""Perpendicular negative prompts and uncond-zero: formulas, then tiny pipelines of every family."""

import pytest
import torch
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.diffusers_hosts import (
    attach_hook,
    detach_hook,
    sample_generators,
    tiny_inputs,
    tiny_pipeline,
)
from noiseworks.kits.diffusers_hosts.levels import to_x0
from noiseworks.linear_ag import AdaptiveGuidance, FixedPolicy, Sampling, attach, calibrate
from noiseworks.linear_ag.diffusers import GuidanceHook
from noiseworks.linear_ag.guidance import perpendicular_negative, uncond_zero
from noiseworks.linear_ag.sampling import sample

LEVELS = {
    "epsilon": (0.8, 0.6, "epsilon"),
    "v_prediction": (0.8, 0.6, "v_prediction"),
    "sample": (0.8, 0.6, "sample"),
    "flow_prediction": (0.4, 0.6, "flow_prediction"),
}


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_only_the_perpendicular_part_of_the_negative_prompt_is_subtracted():
    cond, negative, empty = randn(3, 4, 2, 5, 5)[:3]
    moved = perpendicular_negative(cond, negative, empty, 0.7) - cond
    for i in range(len(cond)):
        p, n = (cond[i] - empty[i]).flatten(), (negative[i] - empty[i]).flatten()
        assert abs(float(moved[i].flatten() @ p)) < 1e-10
        torch.testing.assert_close(-moved[i].flatten() / 0.7, n - (n @ p) / (p @ p) * p)


def test_a_negative_prompt_along_the_prompt_or_empty_changes_nothing():
    cond, empty = randn(2, 3, 4, 5, 5)
    torch.testing.assert_close(perpendicular_negative(cond, empty, empty, 2.0), cond)
    torch.testing.assert_close(perpendicular_negative(cond, 0.3 * cond + 0.7 * empty, empty, 2.0), cond)
    torch.testing.assert_close(perpendicular_negative(empty, cond, empty, 0.0), empty)


@pytest.mark.parametrize("kind", LEVELS)
def test_uncond_zero_centres_and_rescales_the_denoised_sample(kind):
    prediction, sample = randn(2, 3, 4, 8, 8)
    x0 = to_x0(prediction, sample, *LEVELS[kind])
    moved = to_x0(uncond_zero(prediction, sample, 0.9, LEVELS[kind]), sample, *LEVELS[kind])
    for i in range(3):
        centred = x0[i] - x0[i].mean()
        torch.testing.assert_close(moved[i], 0.9 * centred / centred.std().sqrt())


def test_uncond_zero_leaves_centred_samples_of_unit_variance_alone():
    x0 = randn(2, 4, 8, 8)
    x0 = x0 - x0.mean(dim=(1, 2, 3), keepdim=True)
    x0 = x0 / x0.std(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(uncond_zero(x0, randn(2, 4, 8, 8, seed=1), 1.0, LEVELS["sample"]), x0)


@pytest.fixture(scope="module")
def pipes():
    families = ("sd", "sdxl", "sd3", "pixart", "sd-inpaint", "flux", "dit", "instruct-pix2pix")
    return {family: tiny_pipeline(family) for family in families}


def first_step(pipe, family, policy, negative):
    """Return (predictions, handed) of the first step, in chain order."""
    seen = []
    hook = GuidanceHook(pipe, policy, record=lambda step, *pair: seen.append(pair))
    attach_hook(pipe, hook, "spy")
    extra = {} if negative is None else {"negative_prompt": [negative] * 2}
    try:
        pipe(
            **tiny_inputs(family, 2),
            **extra,
            num_inference_steps=2,
            generator=sample_generators([0, 1]),
            output_type="latent",
        )
    finally:
        detach_hook(pipe, "spy")
    return seen[0], hook


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "pixart", "sd-inpaint"])
def test_hosts_guide_against_the_empty_prompt(pipes, family):
    """The empty prediction is what the host itself uses without a negative prompt."""
    plain, perp = FixedPolicy(actions="22"), AdaptiveGuidance(threshold=2.0, perp_neg=0.8)
    ((cond, empty), _), _ = first_step(pipes[family], family, plain, None)
    ((_, negative), _), _ = first_step(pipes[family], family, plain, "green")
    (_, handed), hook = first_step(pipes[family], family, perp, "green")
    assert not torch.allclose(negative, empty)
    channels = hook.channels
    expected = perpendicular_negative(
        cond[:, :channels].double(), negative[:, :channels].double(), empty[:, :channels].double(), 0.8
    )
    torch.testing.assert_close(handed[1], empty, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(handed[0, :, :channels], expected.float(), rtol=1e-4, atol=1e-5)
    assert hook.counters.rows == [4, 2, 4, 2]
    assert hook.states[-1].nfe.tolist() == [6, 6]


def test_adaptive_guidance_drops_both_extra_evaluations_together(pipes):
    with attach(pipes["sd"], AdaptiveGuidance(threshold=-1.0, perp_neg=1.0)) as ag:
        pipes["sd"](**tiny_inputs("sd", 2), num_inference_steps=4, output_type="latent")
    assert ag.rows == [4, 2, 2, 2, 2]
    assert ag.report.nfe == [6, 6]


def test_calibration_counts_the_third_evaluation(pipes):
    sampling = Sampling(4, 4.0, negative_prompt="green", batch_size=4)
    prompts = ["a red circle", "a blue square", "a green cross", "a red square"]
    found = calibrate(pipes["sd"], prompts, sampling, target_nfe=12.0, policy=AdaptiveGuidance(perp_neg=1.0))
    with attach(pipes["sd"], found) as ag:
        list(sample(pipes["sd"], prompts, sampling))
    assert ag.report.nfe == [12] * 4
    with pytest.raises(InputError, match="target_nfe"):
        calibrate(pipes["sd"], prompts, sampling, target_nfe=5.0, policy=found)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "pixart", "dit", "instruct-pix2pix"])
def test_uncond_zero_acts_after_guidance_has_ended(pipes, family):
    def draw(policy, steps):
        output = "pt" if family == "dit" else "latent"
        with attach(pipes[family], policy) as ag:
            images = pipes[family](
                **tiny_inputs(family, 2),
                num_inference_steps=steps,
                generator=sample_generators([0, 1]),
                output_type=output,
            ).images
        return images, ag.report.nfe

    (off, calls), (on, calls_on) = (
        draw(AdaptiveGuidance(threshold=-1.0, uncond_zero=scale), 3) for scale in (0.0, 1.0)
    )
    assert calls == calls_on
    assert not torch.allclose(off, on)
    guided = AdaptiveGuidance(threshold=2.0, uncond_zero=1.0)
    assert torch.equal(draw(guided, 2)[0], draw(AdaptiveGuidance(threshold=2.0), 2)[0])


def test_hosts_that_cannot_take_an_extra_say_why(pipes):
    for family in ("flux", "dit", "instruct-pix2pix"):
        with pytest.raises(UnsupportedHostError, match="perp_neg"):
            attach(pipes[family], AdaptiveGuidance(perp_neg=1.0))
    with pytest.raises(UnsupportedHostError, match="uncond_zero"):
        attach(pipes["flux"], AdaptiveGuidance(uncond_zero=1.0))
    for bad in ({"perp_neg": -1.0}, {"uncond_zero": float("nan")}):
        with pytest.raises(InputError):
            AdaptiveGuidance(**bad)
