"""Attached to tiny pipelines of every family: neutral settings change nothing, detach restores all."""

import pytest
import torch
from noiseworks.core.errors import InputError, NonFiniteError, UnsupportedHostError
from noiseworks.kits import attachments
from noiseworks.kits.diffusers_hosts import (
    FAMILIES,
    denoiser_of,
    sample_generators,
    tiny_inputs,
    tiny_pipeline,
)
from noiseworks.linear_ag import (
    AdaptiveGuidance,
    FixedPolicy,
    GuidancePolicy,
    IntervalGuidance,
    attach,
)
from noiseworks.linear_ag.policies import ReuseGuidance
from noiseworks.linear_ag.thresholds import candidate_thresholds, nfe_of_traces

STEPS, FEW = 6, 2


@pytest.fixture(scope="module")
def pipes():
    return {family: tiny_pipeline(family) for family in FAMILIES}


def draw(pipe, family, batch=2, steps=STEPS, seed=0, scale=4.0, **extra):
    output = "pt" if family == "dit" else "latent"
    inputs = {**tiny_inputs(family, batch, scale), **extra}
    generator = sample_generators(range(seed, seed + batch))
    return pipe(**inputs, num_inference_steps=steps, generator=generator, output_type=output).images


def full_rows(family, batch=2, steps=STEPS):
    if family == "flux":
        return [batch, batch] * steps
    return [batch * (3 if family == "instruct-pix2pix" else 2)] * steps


@pytest.mark.parametrize("family", FAMILIES)
def test_threshold_below_everything_costs_one_guided_step(pipes, family):
    with attach(pipes[family], AdaptiveGuidance(threshold=-1.0)) as ag:
        first, second = (draw(pipes[family], family, steps=FEW) for _ in range(2))
    assert torch.equal(first, second)
    once = [2, 2] + [2] * (FEW - 1) if family == "flux" else [full_rows(family)[0]] + [2] * (FEW - 1)
    assert ag.rows == once * 2
    roles = 3 if family == "instruct-pix2pix" else 2
    assert ag.report.nfe == [FEW - 1 + roles] * 2
    assert ag.report.actions == ["2" + "1" * (FEW - 1)] * 2


@pytest.mark.parametrize("family", FAMILIES)
def test_conditional_only_equals_the_host_without_guidance(pipes, family):
    unguided = draw(pipes[family], family, steps=FEW, scale=1.0)
    with attach(pipes[family], FixedPolicy(actions="1" * FEW)):
        skipped = draw(pipes[family], family, steps=FEW)
    if family == "instruct-pix2pix":  # without guidance this host also drops the image condition's zero rows
        assert skipped.shape == unguided.shape
    torch.testing.assert_close(skipped, unguided, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_a_kept_difference_fades_by_its_age(pipes, family):
    pipe, drawn = pipes[family], {}
    for decay in (0.0, 0.5, 1.0):
        with attach(pipe, AdaptiveGuidance(threshold=-1.0, decay=decay)) as ag:
            drawn[decay] = draw(pipe, family, steps=FEW)
        assert ag.report.nfe == [FEW + 1] * 2
    with attach(pipe, ReuseGuidance(every=FEW)):
        assert torch.equal(draw(pipe, family, steps=FEW), drawn[1.0])
    # The second of two steps is linear in its prediction, so half the difference ends half way.
    assert not torch.allclose(drawn[0.0], drawn[1.0])
    torch.testing.assert_close(drawn[0.5], (drawn[0.0] + drawn[1.0]) / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["sd", "flux", "dit", "instruct-pix2pix"])
def test_mixed_batch_equals_single_runs(pipes, family):
    pipe = pipes[family]
    with attach(pipe, AdaptiveGuidance(threshold=1.5)) as ag:
        draw(pipe, family, batch=3, steps=4)
    gamma = ag.states[-1].gamma[..., 0]
    # Of the thresholds that part the samples, the one farthest from any similarity: rounding moves those.
    tried = [AdaptiveGuidance(threshold=value) for value in candidate_thresholds(gamma)]
    parting = [one for one in tried if len(nfe_of_traces(gamma, one).unique()) > 1]
    policy = max(parting, key=lambda one: float((gamma - one.threshold).abs().min()))
    with attach(pipe, policy) as ag:
        together = draw(pipe, family, batch=3, steps=4)
        nfe, actions = ag.report.nfe, ag.report.actions
        assert len(set(actions)) > 1
        for i in range(3):
            inputs = {
                k: v[i : i + 1] if isinstance(v, list | torch.Tensor) else v
                for k, v in tiny_inputs(family, 3).items()
            }
            alone = draw(pipe, family, batch=1, steps=4, seed=i, **inputs)
            # Sums run in another order at another batch size, and random networks amplify that.
            assert float((alone[0] - together[i]).abs().max()) < 1e-3 * float(together[i].abs().max())
            assert ag.report.nfe == nfe[i : i + 1]
            assert ag.report.actions == actions[i : i + 1]


def test_rows_shrink_sample_by_sample(pipes):
    class Staggered(GuidancePolicy):
        def decide(self, step, state):
            return torch.where(step < torch.tensor([1, 3, 5]), 2, 1)

    with attach(pipes["sd"], Staggered()) as ag:
        draw(pipes["sd"], "sd", batch=3)
    assert ag.rows == [6, 5, 5, 4, 4, 3]
    assert ag.report.nfe == [7, 9, 11]


def test_row_counts_are_padded_without_changing_results(pipes):
    policy = FixedPolicy(actions="222111")
    with attach(pipes["sd"], policy) as ag:
        plain = draw(pipes["sd"], "sd", batch=3)
    with attach(pipes["sd"], policy, row_multiple=4) as padded:
        wide = draw(pipes["sd"], "sd", batch=3)
    assert ag.rows == [6, 6, 6, 3, 3, 3]
    assert padded.rows == [6, 6, 6, 4, 4, 4]
    torch.testing.assert_close(wide, plain, rtol=1e-4, atol=1e-4)


def test_unconditional_steps_ignore_the_prompt(pipes):
    with attach(pipes["sd"], FixedPolicy(actions="0" * STEPS)) as ag:
        one = draw(pipes["sd"], "sd", prompt=["a red circle"] * 2)
        other = draw(pipes["sd"], "sd", prompt=["a blue square"] * 2)
    assert torch.equal(one, other)
    assert ag.rows == [2] * 2 * STEPS


def test_strength_acts_like_another_guidance_scale(pipes):
    expected = draw(pipes["sd"], "sd", scale=3.0)
    with attach(pipes["sd"], FixedPolicy(actions="2" * STEPS, strengths=((3.0 - 1) / (5.0 - 1),) * STEPS)):
        found = draw(pipes["sd"], "sd", scale=5.0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_reusing_the_difference_costs_one_evaluation(pipes):
    with attach(pipes["sd"], ReuseGuidance(every=2)) as ag:
        draw(pipes["sd"], "sd")
    assert ag.report.actions == ["242424"] * 2
    assert ag.report.nfe == [9, 9]


def test_instruct_pix2pix_shrinks_from_three_to_two_to_one(pipes):
    pipe = pipes["instruct-pix2pix"]

    class Chain(GuidancePolicy):
        def decide(self, step, state):
            return torch.full((state.batch,), [2, 2, 5, 5, 1, 1][step])

    with attach(pipe, Chain()) as ag:
        draw(pipe, "instruct-pix2pix")
    assert ag.rows == [6, 6, 4, 4, 2, 2]
    state = ag.states[-1]
    assert bool(state.gamma[:2].isfinite().all())
    assert bool(state.gamma[2:4, :, 0].isnan().all())
    assert bool(state.gamma[2:4, :, 1].isfinite().all())


@pytest.mark.parametrize("family", ["sd", "sdxl", "flux", "pixart"])
def test_negative_prompts_stand_in_for_the_empty_one(pipes, family):
    with attach(pipes[family], AdaptiveGuidance(threshold=1.5)):
        one = draw(pipes[family], family, negative_prompt=["green"] * 2)
        other = draw(pipes[family], family, negative_prompt=["large"] * 2)
    assert not torch.equal(one, other)


def test_guidance_scale_of_one_passes_through(pipes):
    plain = draw(pipes["sd"], "sd", scale=1.0)
    with attach(pipes["sd"], AdaptiveGuidance(threshold=-1.0)) as ag:
        assert torch.equal(draw(pipes["sd"], "sd", scale=1.0), plain)
        with pytest.raises(InputError, match="guidance_scale above 1"):
            _ = ag.report
        draw(pipes["sd"], "sd")
        assert ag.report.nfe == [STEPS + 1] * 2
        draw(pipes["sd"], "sd", scale=1.0)
        with pytest.raises(InputError, match="no guided run"):  # the last run's report is not an older one's
            _ = ag.report


def test_full_guidance_counts_every_row(pipes):
    for family in ("sd", "flux", "instruct-pix2pix"):
        with attach(pipes[family], AdaptiveGuidance(threshold=1.5)) as ag:
            draw(pipes[family], family)
        assert ag.rows == full_rows(family)
        assert ag.report.nfe == [ag.report.full_nfe] * 2
        assert ag.report.full_nfe == (3 if family == "instruct-pix2pix" else 2) * STEPS


def test_guidance_rescale_is_unaffected(pipes):
    plain = draw(pipes["sd"], "sd", guidance_rescale=0.7)
    with attach(pipes["sd"], AdaptiveGuidance(threshold=1.5)):
        assert torch.equal(draw(pipes["sd"], "sd", guidance_rescale=0.7), plain)


def test_second_order_solver_keeps_one_action_per_step():
    from diffusers import HeunDiscreteScheduler

    pipe = tiny_pipeline("sd")
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    with attach(pipe, FixedPolicy(actions="221")) as ag:
        draw(pipe, "sd", steps=3)
    assert ag.rows == [4, 4, 4, 2, 2]
    assert ag.report.actions == ["221"] * 2
    assert ag.report.nfe == [8, 8]
    assert ag.report.full_nfe == 10
    assert ag.report.of_full_guidance == 0.8


@pytest.mark.parametrize(
    "name",
    [
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "EulerAncestralDiscreteScheduler",
        "PNDMScheduler",
        "UniPCMultistepScheduler",
    ],
)
def test_other_schedulers_run_and_repeat(pipes, name):
    import diffusers

    extra = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    scheduler = getattr(diffusers, name).from_config(pipes["sd"].scheduler.config, **extra)
    pipe = type(pipes["sd"]).from_pipe(pipes["sd"], scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    plain = draw(pipe, "sd", steps=4)
    with attach(pipe, AdaptiveGuidance(threshold=1.5)):
        assert torch.equal(draw(pipe, "sd", steps=4), plain)
    with attach(pipe, IntervalGuidance(stop=0.5)) as ag:
        assert torch.equal(draw(pipe, "sd", steps=4), draw(pipe, "sd", steps=4))
    assert ag.report.actions == ["2211"] * 2


def test_host_saves_the_same_while_attached(pipes, tmp_path):
    keys = list(pipes["sd"].unet.state_dict())
    with attach(pipes["sd"], AdaptiveGuidance()):
        assert list(pipes["sd"].unet.state_dict()) == keys
        pipes["sd"].save_pretrained(tmp_path)
    assert (tmp_path / "model_index.json").is_file()


def test_changed_batch_size_and_interrupted_run_start_anew(pipes):
    def interrupt(pipe, step, timestep, kwargs):
        pipe._interrupt = step == 1
        return kwargs

    with attach(pipes["sd"], AdaptiveGuidance(threshold=-1.0)) as ag:
        draw(pipes["sd"], "sd", callback_on_step_end=interrupt)
        draw(pipes["sd"], "sd", batch=3)
    assert ag.rows == [4, 2, 6, 3, 3, 3, 3, 3]


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_not_finite_predictions_stop_the_run(family):
    pipe = tiny_pipeline(family)
    next(denoiser_of(pipe).parameters()).fill_(float("nan"))
    for policy in (AdaptiveGuidance(), FixedPolicy("111111"), IntervalGuidance(0.5, 1.0)):
        with attach(pipe, policy), pytest.raises(NonFiniteError, match="step 0"):
            draw(pipe, family)


def test_positional_arguments_are_those_that_the_names_promise():
    assert AdaptiveGuidance(0.95) == AdaptiveGuidance(threshold=0.95)
    assert IntervalGuidance(0.2, 0.6) == IntervalGuidance(start=0.2, stop=0.6)
    assert FixedPolicy("21") == FixedPolicy(actions="21")
    assert ReuseGuidance(3) == ReuseGuidance(every=3)


def test_bad_hosts_and_policies_are_refused(pipes):
    class Other:
        pass

    with pytest.raises(UnsupportedHostError, match="Other is not supported"):
        attach(Other(), AdaptiveGuidance())
    empty = tiny_pipeline("sd")
    empty.unet = None
    with pytest.raises(UnsupportedHostError, match="has no unet: load"):
        attach(empty, AdaptiveGuidance())
    with pytest.raises(InputError, match="flow"):
        attach(pipes["sd3"], AdaptiveGuidance(space="x_minus_eps"))
    with pytest.raises(InputError, match="GuidancePolicy"):
        attach(pipes["sd"], "2211")
    with attach(pipes["sd"], FixedPolicy(actions="21")) as ag:
        with pytest.raises(InputError, match="already"):
            attach(pipes["sd"], AdaptiveGuidance())
        with pytest.raises(InputError, match="2 steps, this run has 6"):
            draw(pipes["sd"], "sd")
    assert ag.rows == []
    distilled = tiny_pipeline("sd")
    distilled.unet.register_to_config(time_cond_proj_dim=8)
    with pytest.raises(UnsupportedHostError, match="distilled"):
        attach(distilled, AdaptiveGuidance())


def test_a_method_that_keeps_rows_between_calls_is_refused(pipes):
    keep = [attachments.Wrap(pipes["sd"].unet, lambda beneath, *args, **kwargs: beneath(*args, **kwargs))]
    words = "noiseworks-linear-ag drops batch rows between calls and cache stores"
    with attachments.attach("cache", keep, "keeps"), pytest.raises(UnsupportedHostError, match=words):
        attach(pipes["sd"], AdaptiveGuidance())


def test_a_feature_cache_is_refused(pipes):
    from diffusers import FirstBlockCacheConfig

    pipes["flux"].transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(UnsupportedHostError, match="disable_cache"):
        attach(pipes["flux"], AdaptiveGuidance())
    pipes["flux"].transformer.disable_cache()
