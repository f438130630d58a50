"""Calibration, fitting, searching and the guider on tiny pipelines."""

from dataclasses import replace

import pytest
import torch
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.diffusers_hosts import attach_hook, draw, sample_generators, tiny_inputs, tiny_pipeline
from noiseworks.linear_ag import (
    AdaptiveGuidance,
    Aim,
    FixedPolicy,
    LinearGuidance,
    Sampling,
    attach,
    calibrate,
    fit_linear,
)
from noiseworks.linear_ag.calibration import collect_gram
from noiseworks.linear_ag.diffusers import GuidanceHook
from noiseworks.linear_ag.guidance import cosine, in_space
from noiseworks.linear_ag.linear import fit_from_gram, gram_matrix, r2_of
from noiseworks.linear_ag.options import SearchSettings
from noiseworks.linear_ag.plots import plot_trace
from noiseworks.linear_ag.policy_search import search_policy
from noiseworks.linear_ag.sampling import record_similarity, sample_latents
from noiseworks.linear_ag.thresholds import nfe_of_traces

PROMPTS = [f"a {color} {shape}" for color in ("red", "green", "blue") for shape in ("circle", "square")]
SAMPLING = Sampling(num_inference_steps=6, guidance_scale=4.0, batch_size=3)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


@pytest.fixture(scope="module")
def fitted(pipe):
    return fit_linear(pipe, PROMPTS, SAMPLING)


def test_recorded_similarity_equals_recomputation_from_saved_predictions(pipe):
    seen = []

    class Spy(GuidanceHook):
        def _measure(self, call, sample, actions, filled):
            super()._measure(call, sample, actions, filled)
            seen.append((filled.clone(), sample.clone(), self.level(call)))

    hook = Spy(pipe, AdaptiveGuidance(threshold=2.0, space="x0"))
    with attach_hook(hook, "spy"):
        list(draw(pipe, PROMPTS[:3], SAMPLING))
    assert len(seen) == 6
    for step, (predictions, x, level) in enumerate(seen):
        again = cosine(*(in_space(p.double(), x.double(), "x0", level) for p in predictions))
        torch.testing.assert_close(hook.states[0].gamma[step, :, 0], again, rtol=0, atol=1e-5)


def test_batch_size_changes_no_sample(pipe):
    together = sample_latents(pipe, PROMPTS[:3], SAMPLING, AdaptiveGuidance(threshold=2.0))
    apart = sample_latents(pipe, PROMPTS[:3], Sampling(6, 4.0, batch_size=1), AdaptiveGuidance(threshold=2.0))
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-3)


def test_calibration_meets_its_budget_on_the_prompts_it_saw(pipe):
    gamma = record_similarity(pipe, PROMPTS, SAMPLING)
    found = calibrate(pipe, PROMPTS, SAMPLING, Aim(target_nfe=9.0))
    expected = nfe_of_traces(gamma, found)
    with attach(pipe, found) as ag:
        list(draw(pipe, PROMPTS, SAMPLING))
    assert [n for report in ag.reports for n in report.nfe] == expected.tolist()
    assert abs(float(expected.double().mean()) - 9.0) <= 1.5


def test_calibration_for_quality_stays_within_the_loss(pipe):
    strict = calibrate(pipe, PROMPTS[:1], SAMPLING, Aim(max_quality_loss=0.0))
    loose = calibrate(pipe, PROMPTS[:1], SAMPLING, Aim(max_quality_loss=1e9))
    assert loose.threshold < strict.threshold
    with pytest.raises(InputError, match="either"):
        calibrate(pipe, PROMPTS, SAMPLING, Aim())
    with pytest.raises(InputError, match="target_nfe"):
        calibrate(pipe, PROMPTS, SAMPLING, Aim(target_nfe=13.0))


def test_linear_fit_runs_and_costs_what_its_policy_says(pipe, fitted):
    gram, _ = collect_gram(pipe, PROMPTS, Sampling(6, 4.0, batch_size=3, seed=100))
    assert bool((r2_of(fitted, gram) > 0.5).all())
    policy = LinearGuidance(coefficients=fitted)
    assert policy.actions == "232111"
    with attach(pipe, policy) as ag:
        latents = list(draw(pipe, PROMPTS, SAMPLING))
    assert ag.report.nfe == [8] * 3
    assert ag.rows == [6, 3, 6, 3, 3, 3] * 2
    assert bool(torch.cat(latents).isfinite().all())
    gram, settings = collect_gram(pipe, PROMPTS[:3], SAMPLING, closed_loop=policy)
    closed = fit_from_gram(gram, 6, settings=settings)
    assert bool(closed.r2.isfinite().all())
    assert not torch.equal(closed.beta_uncond[3], fitted.beta_uncond[3])


@pytest.mark.parametrize(
    "change", [{"guidance_scale": 5.0}, {"negative_prompt": "large"}, {"num_inference_steps": 5}]
)
def test_coefficients_refuse_other_runs(pipe, fitted, change):
    policy = LinearGuidance(coefficients=fitted)
    other = Sampling(**{"num_inference_steps": 6, "guidance_scale": 4.0, "batch_size": 3, **change})
    with attach(pipe, policy) as ag, pytest.raises(InputError, match="fit again"):
        list(draw(pipe, PROMPTS[:3], other))
    assert ag.rows == []


def test_a_stopped_fit_goes_on_to_the_same_numbers(pipe, fitted, tmp_path):

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_linear(pipe, PROMPTS, SAMPLING, partial=tmp_path / "partial", progress=stop)
    counted = []
    resumed = fit_linear(
        pipe,
        PROMPTS,
        SAMPLING,
        partial=tmp_path / "partial",
        progress=lambda done, total: counted.append(done),
    )
    assert counted == [6]
    assert torch.equal(resumed.beta_cond, fitted.beta_cond)
    assert torch.equal(resumed.beta_uncond, fitted.beta_uncond)
    with pytest.raises(InputError, match="other prompts"):
        fit_linear(pipe, PROMPTS[:5], SAMPLING, partial=tmp_path / "partial")


def test_gram_needs_far_less_memory_than_stacked_regressors():
    cond, uncond = torch.randn(2, 20, 8, 256)
    gram = gram_matrix(cond, uncond)
    stacked = 39 * cond[0].numel() * 8
    assert gram.numel() * gram.element_size() * 40 < stacked * 25  # 200 prompts are 25 such batches


def test_second_order_schedulers_and_three_predictions_cannot_be_fitted():
    from diffusers import HeunDiscreteScheduler

    pipe = tiny_pipeline("sd")
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(InputError, match="first-order"):
        fit_linear(pipe, PROMPTS, SAMPLING)
    with pytest.raises(UnsupportedHostError, match="two predictions"):
        fit_linear(tiny_pipeline("instruct-pix2pix"), PROMPTS, SAMPLING)


def test_truncation_and_local_search_keep_the_budget(pipe):
    settings = SearchSettings("truncation", budget=9.0)
    truncated = search_policy(pipe, PROMPTS[:3], SAMPLING, settings)
    assert truncated.actions == "222111"
    kept = search_policy(pipe, PROMPTS[:3], SAMPLING, replace(settings, reuse=True))
    assert kept.actions == "222444"
    with pytest.raises(InputError, match="relaxed search does not reuse"):
        search_policy(pipe, PROMPTS[:3], SAMPLING, SearchSettings(reuse=True))
    found = search_policy(pipe, PROMPTS[:3], SAMPLING, SearchSettings("local", budget=9.0, max_evaluations=5))
    assert found.nfe == 9
    with pytest.raises(InputError, match="budget"):
        search_policy(pipe, PROMPTS, SAMPLING, SearchSettings("truncation", budget=13.0))


def test_trace_is_drawn(pipe, tmp_path):
    from PIL import Image

    with attach(pipe, FixedPolicy(actions="222111")) as ag:
        list(draw(pipe, PROMPTS[:3], SAMPLING))
    with Image.open(plot_trace(ag.states[0], tmp_path / "trace.png", threshold=0.9)) as image:
        assert image.width == 640
        assert len(image.getcolors(100_000)) > 4


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_guider_drops_the_unconditional_pass_and_resets(family):
    import diffusers
    from noiseworks.linear_ag import AdaptiveClassifierFreeGuidance

    pipe = tiny_pipeline(family)
    cls = {"sdxl": "StableDiffusionXLAutoBlocks", "sd3": "StableDiffusion3AutoBlocks"}[family]
    modular = getattr(diffusers, cls)().init_pipeline()
    modular.update_components(**{k: v for k, v in pipe.components.items() if v is not None})
    denoiser = pipe.unet if family == "sdxl" else pipe.transformer
    calls = []
    denoiser.register_forward_pre_hook(lambda *_: calls.append(1))
    prompt = tiny_inputs(family, 1)["prompt"][0]

    def draw(guider):
        modular.update_components(guider=guider)
        calls.clear()
        images = modular(
            prompt=prompt,
            num_inference_steps=6,
            height=32,
            width=32,
            generator=sample_generators([0])[0],
            output="images",
            output_type="np",
            **({"max_sequence_length": 16} if family == "sd3" else {}),
        )
        return images, len(calls)

    plain, count = draw(diffusers.ClassifierFreeGuidance(guidance_scale=4.0))
    assert count == 12
    never = AdaptiveClassifierFreeGuidance(guidance_scale=4.0, threshold=1.5, flow=family == "sd3")
    for _ in range(2):
        images, count = draw(never)
        assert count == 12
        assert (images == plain).all()
    assert len(never.gamma) == 6
    always = AdaptiveClassifierFreeGuidance(guidance_scale=4.0, threshold=-1.0, flow=family == "sd3")
    assert [draw(always)[1] for _ in range(2)] == [7, 7]
    assert not denoiser._forward_pre_hooks or len(denoiser._forward_pre_hooks) == 1


def test_guider_survives_saving(tmp_path):
    from noiseworks.linear_ag import AdaptiveClassifierFreeGuidance

    guider = AdaptiveClassifierFreeGuidance(guidance_scale=5.0, threshold=0.97, min_step=3)
    guider.save_pretrained(tmp_path)
    loaded = AdaptiveClassifierFreeGuidance.from_pretrained(tmp_path)
    assert (loaded.guidance_scale, loaded.threshold, loaded.min_step) == (5.0, 0.97, 3)
    assert guider.new(threshold=0.9).threshold == 0.9
    with pytest.raises(InputError, match="threshold"):
        AdaptiveClassifierFreeGuidance(threshold=float("nan"))
