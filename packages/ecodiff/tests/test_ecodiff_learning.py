"""The objective: exact gradients at the memory of one step, what learning does in its limits, and recovery."""

from dataclasses import replace

import pytest
import torch
from noiseworks.core.errors import UnsupportedHostError
from noiseworks.core.memory import PeakMemory
from noiseworks.ecodiff import Learning, MaskSet, Recovery, Runs, Sampling, learn_masks, pruned_copy, recover
from noiseworks.ecodiff.evaluation import count_parameters, latent_errors, swapped
from noiseworks.ecodiff.learning import MaskLoop
from noiseworks.kits.diffusers_hosts import denoiser_of, find_units, layout_of, tiny_pipeline

PROMPTS = ["a red circle", "a blue square", "a green cross", "a small red cross"]


def runs_of(pipe, steps=2, guidance_scale=4.0, batch_size=2):
    sampling = Sampling(num_inference_steps=steps, guidance_scale=guidance_scale, batch_size=batch_size)
    return Runs(pipe, [1, 2, 3, 4] if type(pipe).__name__ == "DiTPipeline" else PROMPTS, sampling)


def double(pipe):
    denoiser_of(pipe).double()
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3", "vae"):
        if getattr(pipe, name, None) is not None:
            getattr(pipe, name).double()
    return pipe


def gradients(pipe, learning, steps=2, guidance_scale=4.0, rows=2):
    """Return the gradients of one update (with rates of 0), its loss and the peak of memory."""
    still = replace(learning, lr_attn=0.0, lr_ffn=0.0, accumulate=rows)
    family = layout_of(pipe).family
    loop = MaskLoop(
        runs_of(pipe, steps, guidance_scale, rows), find_units(denoiser_of(pipe)), still.resolved(family)
    )
    numbers = list(range(rows))
    with loop.attached():
        loop.runs.dense(numbers, lambda: loop.current.set(loop.masks.draw("none")))
        with PeakMemory() as memory:
            loop.round(0)
    return [values.grad for values in loop.masks.logits.values()], memory.peak


@pytest.mark.parametrize(
    ("family", "scheduler", "mask_sample", "steps"),
    [
        ("sd", "DDIMScheduler", "step", 2),
        ("dit", "EulerDiscreteScheduler", "trajectory", 3),
        ("dit", "DPMSolverMultistepScheduler", "step", 3),
        ("sd3", "FlowMatchEulerDiscreteScheduler", "trajectory", 2),
    ],
)
def test_checkpointed_gradients_are_exact_for_every_solver(family, scheduler, mask_sample, steps):
    """Also for multistep solvers, whose steps read the predictions of earlier ones."""
    import diffusers

    pipe = double(tiny_pipeline(family))
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    learning = Learning(eps=0.1, start=1.0, mask_sample=mask_sample)
    found, _ = gradients(pipe, learning, steps, rows=1)
    plain, _ = gradients(pipe, replace(learning, checkpointed=False), steps, rows=1)
    assert max(float(one.abs().max()) for one in found) > 1e-6
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert all(weight.grad is None for weight in denoiser_of(pipe).parameters())


def test_gradient_is_the_slope_of_the_loss():
    pipe = double(tiny_pipeline("dit"))
    learning = Learning(eps=0.1, start=1.0, beta=0.0)
    found, _ = gradients(pipe, learning)

    def loss(shift):
        still = replace(learning, lr_attn=0.0, lr_ffn=0.0, accumulate=2)
        loop = MaskLoop(runs_of(pipe), find_units(denoiser_of(pipe)), still.resolved("dit"))
        with torch.no_grad():
            next(iter(loop.masks.logits.values()))[0] += shift
        with loop.attached():
            return 2 * loop.round(0)["reconstruction"]

    slope = (loss(1e-2) - loss(-1e-2)) / 2e-2
    assert slope == pytest.approx(float(found[0][0]), rel=5e-3)


def test_memory_hardly_depends_on_the_number_of_steps():
    """With guidance and masks of each step: a step keeps its latents, of one role, and nothing of its masks."""
    pipe = tiny_pipeline("dit")
    learning = Learning(eps=0.1, start=1.0, mask_sample="step")
    peaks = {steps: gradients(pipe, learning, steps)[1] for steps in (4, 32)}
    assert peaks[32] < 1.25 * peaks[4]  # 1.30 with the latents of both roles
    graph = replace(learning, checkpointed=False)
    plain = {steps: gradients(pipe, graph, steps)[1] for steps in (4, 8)}
    assert plain[8] > 1.5 * plain[4], "the plain graph must grow, or this shows nothing"
    assert plain[8] > 2 * peaks[32]


def test_without_a_penalty_whole_units_stay_whole_and_with_a_large_one_logits_fall_at_the_rate():
    pipe = tiny_pipeline("sd")
    units = find_units(denoiser_of(pipe), include="down")
    common = {"epochs": 1, "accumulate": 2, "lr_attn": 0.1, "lr_ffn": 0.1}
    still = learn_masks(
        runs_of(pipe), units, Learning(beta=0.0, start=10.0, eps=0.5, **common), progress=False
    )
    assert still.sparsity() == {"attn": 0.0, "ffn": 0.0}
    falling = learn_masks(runs_of(pipe), units, Learning(beta=1e4, start=3.0, **common), progress=False)
    for values in falling.logits.values():
        torch.testing.assert_close(values.detach(), torch.full_like(values, 2.8), atol=0.01, rtol=0)
    assert falling.updates == 2


def test_one_step_is_distillation_of_that_step():
    """With T = 1 the final latent is linear in the prediction: both gradients are the same but for its slope."""
    from diffusers import DDIMScheduler

    pipe = double(tiny_pipeline("sd"))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    learning = Learning(eps=0.1, start=1.0, beta=0.0)
    whole, _ = gradients(pipe, learning, steps=1, guidance_scale=1.0)
    local, _ = gradients(pipe, replace(learning, objective="step"), steps=1, guidance_scale=1.0)
    (t,) = pipe.scheduler.timesteps
    noisy, clean = pipe.scheduler.alphas_cumprod[t], pipe.scheduler.final_alpha_cumprod
    slope = float((1 - clean).sqrt() - (clean * (1 - noisy) / noisy).sqrt())
    assert max(float(one.abs().max()) for one in local) > 1e-6
    for one, other in zip(whole, local, strict=True):
        torch.testing.assert_close(one, slope**2 * other, rtol=1e-3, atol=1e-8)


def test_schedulers_that_draw_noise_are_refused():
    from diffusers import EulerAncestralDiscreteScheduler

    pipe = tiny_pipeline("sd")
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(UnsupportedHostError, match="EulerAncestral"):
        learn_masks(runs_of(pipe), find_units(denoiser_of(pipe)), progress=False)


def test_recovery_brings_a_pruned_denoiser_closer_and_keeps_its_size():
    pipe = tiny_pipeline("dit")
    units = find_units(denoiser_of(pipe))
    small = pruned_copy(pipe, {path: range((group.count + 1) // 2) for path, group in units.groups.items()})
    runs = Runs(pipe, [1, 2, 3, 4], Sampling(num_inference_steps=2, guidance_scale=1.0, batch_size=2))
    size, dense = count_parameters(small), runs.latents([0, 1])
    errors = []
    for steps in (0, 12):
        if steps:
            recover(runs, small, Recovery(rank=4, steps=steps, learning_rate=2e-2), progress=False)
        with swapped(pipe, small):
            errors.append(float(latent_errors(runs.latents([0, 1]), dense).mean()))
    assert errors[1] < 0.9 * errors[0]
    assert count_parameters(small) == size
    assert not any("lora" in name for name, _ in small.named_parameters())


def test_masks_attach_as_they_select():
    pipe = tiny_pipeline("sd")
    model = denoiser_of(pipe)
    units = find_units(model)
    masks = MaskSet.new(units, 1.0)
    runs = runs_of(pipe)
    whole = runs.latents([0])
    with masks.attach(model, units):
        assert torch.equal(runs.latents([0]), whole)
    kept = {path: list(range(group.count))[1:] for path, group in units.groups.items()}
    with masks.attach(model, units, kept=kept):
        masked = runs.latents([0])
    with swapped(pipe, pruned_copy(pipe, kept)):
        torch.testing.assert_close(runs.latents([0]), masked, rtol=1e-3, atol=1e-4)
    assert torch.equal(runs.latents([0]), whole)
