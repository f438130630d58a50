"""Masks without training: counts, limits, and that rewards rise; random masks; data of the user's."""

import pytest
import torch
from noiseworks.core.errors import UnsupportedHostError
from noiseworks.kits.diffusers_hosts import Sampling, denoiser_of, tiny_pipeline
from noiseworks.kits.image_tuning.rewards import Channel
from noiseworks.kits.weight_masks import mask_weights
from noiseworks.maskunet import RandomMasks, RewardSchedule, attach_random, optimise_masks
from noiseworks.maskunet.comparing import best_of, draw_images, equal_passes, score_images
from noiseworks.maskunet.gumbel import gumbel_sigmoid
from noiseworks.maskunet.masked_linear import Draw
from noiseworks.maskunet.masking import masked_layers
from noiseworks.maskunet.random_masks import bits

PROMPTS = ["a red circle", "a blue square"]
REDNESS = [(Channel(0), 1.0)]


def sampling(steps=2, batch_size=2):
    return Sampling(num_inference_steps=steps, guidance_scale=3.0, batch_size=batch_size, seed=5)


def test_the_released_schedule_has_87_passes():
    assert RewardSchedule().passes(15) == 87
    assert equal_passes(RewardSchedule(), 15) == 6
    assert RewardSchedule(reuse_last="after-update").passes(15) == 95


def test_passes_of_the_denoiser_are_those_of_the_schedule():
    pipe, rows = tiny_pipeline("sd"), []
    unet = denoiser_of(pipe)
    before = unet.forward
    unet.forward = lambda *args, **kwargs: rows.append(len(args[0])) or before(*args, **kwargs)
    plan = RewardSchedule(iterations=3, warm_steps=1, reuse_last="after-update")
    found = optimise_masks(pipe, PROMPTS, REDNESS, plan, sampling(3))
    assert rows == [4] * plan.passes(3) == [4] * found.calls
    assert [len(step) for step in found.rewards] == [1, 3, 3]


def test_rewards_rise_within_a_step_and_images_do_not_depend_on_their_batch():
    pipe = tiny_pipeline("sd")
    long, short = (RewardSchedule(iterations=n, warm_steps=0, mask_rate=0.1) for n in (12, 2))
    found = optimise_masks(pipe, PROMPTS[:1], REDNESS, long, sampling(1))
    first = found.rewards[0]
    assert float(first[-4:].mean()) > float(first[:3].mean())
    assert found.sparsity[0] > 0
    together, alone = (optimise_masks(pipe, PROMPTS, REDNESS, short, sampling(batch_size=n)) for n in (2, 1))
    torch.testing.assert_close(alone.images, together.images, rtol=0, atol=2e-3)


def test_without_a_rate_it_is_drawing_with_random_masks():
    """One iteration a step and no learning: the bits are those of the seeds, and nothing of the schedule matters."""
    pipe = tiny_pipeline("sd")
    plan = RewardSchedule(iterations=1, warm_steps=0, mask_rate=0.0)
    found = optimise_masks(pipe, PROMPTS[:1], REDNESS, plan, sampling(1))
    warm = optimise_masks(pipe, PROMPTS[:1], REDNESS, RewardSchedule(warm_steps=5), sampling(1))
    assert torch.equal(found.images, warm.images)
    # the same masks, made here
    from noiseworks.core.noise import mix64

    unet, masks = denoiser_of(pipe), {}
    for number, path in enumerate(path for paths in masked_layers(unet).values() for path in paths):
        weight = unet.get_submodule(path).weight
        key = mix64(mix64(0), mix64(0, 0), number) >> 2
        noise = Draw(seed=0, first_row=[key]).noise((1, *weight.shape), weight.device)
        masks[path] = gumbel_sigmoid(torch.ones(1, *weight.shape), noise)[0]
    with mask_weights(unet, masks, "same"):
        plain = draw_images(pipe, PROMPTS[:1], sampling(1))
    torch.testing.assert_close(plain, found.images, rtol=0, atol=1e-4)


def test_released_solver_state_is_ddim_with_the_same_masks():
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    pipe = tiny_pipeline("sd")
    own = {"final_sigmas_type": "zero", "set_alpha_to_one": True, "steps_offset": 0}
    config = {**pipe.scheduler.config, **own}

    def drawn(scheduler, state):
        pipe.scheduler = scheduler.from_config(config, timestep_spacing="trailing")
        plan = RewardSchedule(iterations=1, warm_steps=9, solver_state=state)
        return optimise_masks(pipe, PROMPTS[:1], REDNESS, plan, sampling(4)).images

    ddim = drawn(DDIMScheduler, "keep")
    torch.testing.assert_close(drawn(DPMSolverMultistepScheduler, "released"), ddim, rtol=0, atol=1e-5)
    assert float((drawn(DPMSolverMultistepScheduler, "keep") - ddim).abs().max()) > 1e-3


def test_nothing_stays_behind_and_flux_is_refused():
    pipe = tiny_pipeline("sd")
    before = draw_images(pipe, PROMPTS, sampling())
    optimise_masks(pipe, PROMPTS, REDNESS, RewardSchedule(warm_steps=0, iterations=2), sampling())
    assert torch.equal(draw_images(pipe, PROMPTS, sampling()), before)
    with pytest.raises(UnsupportedHostError, match="FLUX"):
        optimise_masks(tiny_pipeline("flux"), PROMPTS, REDNESS, RewardSchedule(), sampling())


def test_random_masks_keep_their_share_within_their_steps():
    weight = torch.randn(20, 30)
    for which in ("random", "smallest", "largest"):
        mask = bits(weight, RandomMasks(keep=0.9, which=which), 3)
        assert int(mask.sum()) == 540
        gone, stays = weight.abs()[mask == 0], weight.abs()[mask == 1]
        assert which == "random" or (
            gone.max() <= stays.min() if which == "smallest" else gone.min() >= stays.max()
        )
    pipe = tiny_pipeline("sd")
    plain = draw_images(pipe, PROMPTS, sampling(3))
    with attach_random(pipe, RandomMasks(keep=0.5, first_step=3)):
        assert torch.equal(draw_images(pipe, PROMPTS, sampling(3)), plain)
    with attach_random(pipe, RandomMasks(keep=0.5, first_step=2, last_step=3)):
        assert not torch.equal(draw_images(pipe, PROMPTS, sampling(3)), plain)
    assert torch.equal(draw_images(pipe, PROMPTS, sampling(3)), plain)


def test_the_best_of_n_is_the_best():
    pipe = tiny_pipeline("sd")
    one, four = (best_of(pipe, PROMPTS, REDNESS, sampling(), n) for n in (1, 4))
    assert torch.equal(one, draw_images(pipe, PROMPTS, sampling()))
    low, high = (score_images(REDNESS, images, PROMPTS) for images in (one, four))
    assert bool((high >= low).all())
    assert bool((high > low).any())
