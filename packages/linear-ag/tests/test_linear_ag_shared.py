"""One denoiser in several pipelines, in turn, nested and in threads: each run follows the policy over its own steps."""

import copy
import threading

import diffusers
import pytest
import torch
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.diffusers_hosts import sample_generators, tiny_inputs, tiny_pipeline
from noiseworks.linear_ag import AdaptiveGuidance, FixedPolicy, IntervalGuidance, attach

IMAGE = torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32).expand(2, -1, -1, -1)
MASK = torch.zeros(2, 1, 32, 32)
MASK[..., 8:24, 8:24] = 1.0
OTHERS = {
    "sd": ("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
    "sdxl": ("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
    "sd3": ("StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
}
TRUNCATING = IntervalGuidance(start=0.2, stop=0.6)


@pytest.fixture(scope="module")
def pipes():
    """A pipeline of each family that shares its denoiser, and two others made from it."""
    found = {}
    for family, names in OTHERS.items():
        base = tiny_pipeline(family)
        made = [getattr(diffusers, name).from_pipe(base) for name in names]
        for pipe in made:
            pipe.set_progress_bar_config(disable=True)
        found[family] = (base, *made)
    return found


def draw(pipe, family, steps, strength=0.5, **extra):
    kind = type(pipe).__name__
    inputs = tiny_inputs(family, 2)
    if "Img2Img" in kind or "Inpaint" in kind:
        inputs |= {"image": IMAGE, "strength": strength}
        inputs |= {"mask_image": MASK} if "Inpaint" in kind else {}
        if "Img2Img" in kind and family != "sd3":
            inputs = {k: v for k, v in inputs.items() if k not in ("height", "width")}
    return pipe(
        **inputs,
        num_inference_steps=steps,
        generator=sample_generators([0, 1]),
        output_type="latent",
        **extra,
    ).images


@pytest.mark.parametrize("family", OTHERS)
def test_pipelines_that_share_a_denoiser_take_turns(pipes, family):
    order = [(0, 2), (1, 4), (2, 2), (0, 3)]
    plain = [draw(pipes[family][i], family, steps) for i, steps in order]
    with attach(pipes[family][0], AdaptiveGuidance(threshold=1.5)) as ag:
        guided = [draw(pipes[family][i], family, steps) for i, steps in order]
    assert all(torch.equal(a, b) for a, b in zip(guided, plain, strict=True))
    assert [report.actions[0] for report in ag.reports] == [
        "2" * n for n in (2, 2, 1, 3)
    ]  # strength 0.5 runs half the steps


@pytest.mark.parametrize("family", OTHERS)
def test_fractions_of_the_steps_are_those_of_the_run(pipes, family):
    with attach(pipes[family][0], TRUNCATING) as ag:
        for index, steps in ((1, 10), (0, 5), (2, 10)):
            draw(pipes[family][index], family, steps)
    assert [report.actions[0] for report in ag.reports] == ["12211", "12211", "12211"]


def test_base_and_refiner_divide_the_steps(pipes):
    base, image, _ = pipes["sdxl"]
    with attach(base, TRUNCATING) as ag:
        latents = draw(base, "sdxl", 10, denoising_end=0.5)
        inputs = {k: v for k, v in tiny_inputs("sdxl", 2).items() if k not in ("height", "width")}
        image(**inputs, image=latents, num_inference_steps=10, denoising_start=0.5, output_type="latent")
    assert [report.actions[0] for report in ag.reports] == ["12211", "12211"]


def test_a_pipeline_of_another_family_on_the_same_denoiser_is_refused():
    editor = tiny_pipeline("instruct-pix2pix")
    other = diffusers.StableDiffusionPipeline.from_pipe(editor)
    with attach(editor, TRUNCATING), pytest.raises(UnsupportedHostError, match="denoiser as family 'sd'"):
        draw(other, "sd", 2)


def test_a_run_inside_another_runs_callback_leaves_it_alone(pipes):
    base, image, _ = pipes["sd"]
    with attach(base, TRUNCATING) as ag:
        alone = draw(base, "sd", 10)

        def preview(pipe, step, timestep, kwargs):
            if step == 4:  # its own scheduler, as it would be set anew in the middle of the outer run
                draw(other, "sd", 10)
            return kwargs

        other = type(image).from_pipe(image, scheduler=copy.deepcopy(image.scheduler))
        other.set_progress_bar_config(disable=True)
        nested = draw(base, "sd", 10, callback_on_step_end=preview)
    assert torch.equal(nested, alone)
    assert [report.actions[0] for report in ag.reports] == ["1122221111", "1122221111", "12211"]


def test_threads_on_one_attached_pipeline_draw_what_they_draw_alone(pipes):
    pipe = pipes["sd"][0]
    with attach(pipe, TRUNCATING) as ag:
        alone = draw(pipe, "sd", 5)
        found, barrier = {}, threading.Barrier(2)

        def work(name):
            barrier.wait()
            found[name] = [draw(pipe, "sd", 5) for _ in range(2)]

        threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(images, alone) for drawn in found.values() for images in drawn)
    assert {report.actions[0] for report in ag.reports} == {"12211"}
    assert len(ag.reports) == 5


def test_a_failed_run_leaves_nothing_to_the_next(pipes):
    pipe = pipes["sd"][0]

    def fail(pipe, step, timestep, kwargs):
        raise ValueError("in the middle")

    with attach(pipe, FixedPolicy("221111")) as ag:
        alone = draw(pipe, "sd", 6)
        with pytest.raises(ValueError, match="middle"):
            draw(pipe, "sd", 6, callback_on_step_end=fail)
        assert torch.equal(draw(pipe, "sd", 6), alone)
    assert ag.rows == [4, 4, 2, 2, 2, 2, 4, 4, 4, 2, 2, 2, 2]


def test_loops_of_ones_own_are_followed_and_unknown_callers_refused(pipes):
    pipe = pipes["sd"][0]
    text = torch.randn(4, 16, 32, generator=torch.Generator().manual_seed(0))

    def loop(steps):
        pipe.scheduler.set_timesteps(steps)
        latents = torch.ones(2, 4, 8, 8)
        for t in pipe.scheduler.timesteps:
            both = pipe.unet(torch.cat([latents] * 2), t, encoder_hidden_states=text).sample.chunk(2)
            latents = pipe.scheduler.step(both[0] + 4 * (both[1] - both[0]), t, latents).prev_sample
        return latents

    pipe._guidance_scale = 4.0
    with torch.no_grad(), attach(pipe, TRUNCATING) as ag:
        loop(5), loop(10), loop(10)
        pipe.scheduler.set_timesteps(5)
        with pytest.raises(InputError, match="not in the schedule"):
            pipe.unet(torch.ones(2, 4, 8, 8), 7, encoder_hidden_states=text[:2])
    assert [report.actions[0] for report in ag.reports] == ["12211", "1122221111", "1122221111"]

    class Unknown(diffusers.DiffusionPipeline):
        def __init__(self, unet, scheduler):
            super().__init__()
            self.register_modules(unet=unet, scheduler=scheduler)

        def __call__(self):
            return self.unet(torch.ones(2, 4, 8, 8), 1, encoder_hidden_states=text[:2])

    with attach(pipe, TRUNCATING), pytest.raises(UnsupportedHostError, match="Unknown is not supported"):
        Unknown(pipe.unet, pipe.scheduler)()
