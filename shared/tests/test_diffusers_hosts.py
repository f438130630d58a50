"""The kit: rows, layouts, noise levels, loading, tiny pipelines."""

import copy
import json

import pytest
import torch
from noiseworks.core.errors import InputError, ModelNotFoundError, UnsupportedHostError
from noiseworks.kits.diffusers_hosts import (
    FAMILIES,
    DenoiserHook,
    attach_hook,
    denoiser_of,
    layout_of,
    load_pipeline,
    noise_level,
    prediction_of,
    prediction_type_of,
    replace_prediction,
    sample_generators,
    seeded_latents,
    take_rows,
    tiny_inputs,
    tiny_pipeline,
    to_epsilon,
    to_x0,
)
from noiseworks.kits.diffusers_hosts.levels import distinct_timesteps
from noiseworks.kits.diffusers_hosts.rows import scatter_rows
from noiseworks.kits.diffusers_hosts.tokenizers import bpe_merges, tiny_clip_tokenizer, tiny_t5_tokenizer


class Recorder(DenoiserHook):
    def __init__(self, pipe):
        super().__init__(pipe)
        self.seen = []

    def denoise(self, call):
        run = call.run
        self.seen.append((run.step, run.num_steps, run.batch, run.guided, call.role))
        return super().denoise(call)


def draw(pipe, family, batch=2, steps=3, scale=4.0):
    return pipe(
        **tiny_inputs(family, batch, scale),
        num_inference_steps=steps,
        generator=sample_generators(range(batch)),
        output_type="pt" if family == "dit" else "latent",
    ).images


@pytest.mark.parametrize("family", FAMILIES)
def test_layout_is_what_the_host_feeds(family):
    """Every family: rows, roles and steps as the layout says, and the pipeline restored bit for bit."""
    pipe = tiny_pipeline(family)
    plain = draw(pipe, family)
    hook = Recorder(pipe)
    with attach_hook(hook, "recorder"):
        assert torch.equal(draw(pipe, family), plain)
        draw(pipe, family, scale=1.0)
    assert torch.equal(draw(pipe, family), plain)
    layout = layout_of(pipe)
    if layout.calls == "contexts":
        guided = [(k, 3, 2, k > 0 or role == "uncond", role) for k in range(3) for role in layout.roles]
        assert hook.seen == [*guided, *((k, 3, 2, False, "cond") for k in range(3))]
        assert hook.counters.rows == [2] * 9
    else:
        roles = len(layout.roles)
        assert hook.seen == [(k, 3, 2, guided, None) for guided in (True, False) for k in range(3)]
        assert hook.counters.rows == [2 * roles] * 3 + [2] * 3
    assert "forward" not in denoiser_of(pipe).__dict__


def test_uncond_rows_are_where_the_layout_says():
    """Blanking the rows of a role changes what that role's predictions are made from, and nothing else."""

    class Prompts(DenoiserHook):
        def denoise(self, call):
            labels = call.kwargs.get("class_labels")
            self.text = call.kwargs["encoder_hidden_states"] if labels is None else labels
            return super().denoise(call)

    for family in ("sd", "sdxl", "sd3", "pixart", "dit", "instruct-pix2pix"):
        pipe = tiny_pipeline(family)
        hook = Prompts(pipe)
        attach_hook(hook, "prompts")
        draw(pipe, family, steps=2)
        blocks = dict(zip(layout_of(pipe).roles, hook.text.chunk(len(layout_of(pipe).roles)), strict=True))
        assert torch.equal(blocks["uncond"][0], blocks["uncond"][1]), family
        assert not torch.equal(blocks["cond"][0], blocks["cond"][1]), family


def test_identical_latents_without_guidance_are_not_taken_for_guidance():
    pipe = tiny_pipeline("sd")
    hook = Recorder(pipe)
    attach_hook(hook, "recorder")
    latents = seeded_latents([5, 5], (4, 8, 8))
    pipe(**tiny_inputs("sd", 2, 1.0), num_inference_steps=1, latents=latents, output_type="latent")
    assert hook.seen == [(0, 1, 2, False, None)]


def test_tokenizers_give_one_token_a_word_and_the_same_ids_everywhere():
    words = ["red", "green", "greenery", "circle", "a"]
    tokenizer = tiny_clip_tokenizer(words, 8)
    ids = tokenizer("a red greenery circle", padding="max_length", max_length=8)["input_ids"]
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert end == len(tokenizer) - 1
    assert ids[0] == start
    assert ids[5:] == [end] * 3
    assert tokenizer.convert_ids_to_tokens(ids[1:5]) == ["a</w>", "red</w>", "greenery</w>", "circle</w>"]
    assert len(tokenizer("blue")["input_ids"]) == 6
    assert bpe_merges(["ab", "abc"]) == [("a", "b"), ("a", "b</w>"), ("ab", "c</w>")]
    t5 = tiny_t5_tokenizer(words, 8)
    assert t5.convert_ids_to_tokens(t5("red circle")["input_ids"]) == ["\u2581red", "\u2581circle", "</s>"]


def test_rows_are_taken_from_any_nest():
    rows = torch.tensor([2, 0])
    tensor = torch.arange(8.0).reshape(4, 2)
    nest = {"a": [tensor, (tensor, "text")], "b": torch.ones(3), "ids": tensor, "none": None}
    found = take_rows(nest, rows, 4, shared=("ids",))
    assert torch.equal(found["a"][0], tensor[[2, 0]])
    assert torch.equal(found["a"][1][0], tensor[[2, 0]])
    assert found["a"][1][1] == "text"
    assert found["ids"] is tensor
    assert found["b"].shape == (3,)
    assert torch.equal(scatter_rows(tensor[rows], rows, 4)[[2, 0]], tensor[[2, 0]])
    assert not scatter_rows(tensor[rows], rows, 4)[[1, 3]].any()


def test_predictions_are_replaced_in_every_kind_of_output():
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    old, new = torch.zeros(2), torch.ones(2)
    for output in (old, (old, "rest"), Transformer2DModelOutput(sample=old)):
        changed = replace_prediction(output, new)
        assert type(changed) is type(output)
        assert prediction_of(changed) is new
    assert replace_prediction((old, "rest"), new)[1] == "rest"


@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "DDPMScheduler",
        "DPMSolverMultistepScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "PNDMScheduler",
        "UniPCMultistepScheduler",
    ],
)
def test_noise_level_is_that_of_the_denoisers_input(name):
    """Adding noise the scheduler's way and scaling it gives alpha x_0 + sigma noise."""
    import diffusers

    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    x0 = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    noise = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    for index in (2, 5, -1):
        scheduler = getattr(diffusers, name)(**settings)
        scheduler.set_timesteps(10)
        t = scheduler.timesteps[index]
        noisy = scheduler.add_noise(x0, noise, t[None])
        given = scheduler.scale_model_input(noisy, t)
        alpha, sigma = noise_level(scheduler, float(t))
        assert alpha**2 + sigma**2 == pytest.approx(1.0)
        torch.testing.assert_close(given, alpha * x0 + sigma * noise, rtol=0, atol=2e-3)


def test_flow_levels_and_karras_sigmas():
    from diffusers import DPMSolverMultistepScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    flow.set_timesteps(5)
    for t, sigma in zip(flow.timesteps, flow.sigmas, strict=False):
        assert noise_level(flow, float(t)) == pytest.approx((1 - float(sigma), float(sigma)))
    assert prediction_type_of(flow) == "flow_prediction"
    karras = DPMSolverMultistepScheduler(use_karras_sigmas=True)
    karras.set_timesteps(8)
    alpha, sigma = noise_level(karras, float(karras.timesteps[3]))
    assert sigma / alpha == pytest.approx(float(karras.sigmas[3]), rel=1e-4)
    with pytest.raises(UnsupportedHostError, match="EDM"):
        noise_level(EDMEulerScheduler(), 1.0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
def test_prediction_types_convert_to_the_same_state(kind):
    sigma = 0.7
    alpha = 1 - sigma if kind == "flow_prediction" else (1 - sigma**2) ** 0.5
    x0, noise = torch.randn(2, 3, 5, dtype=torch.float64)
    x = alpha * x0 + sigma * noise
    prediction = {
        "epsilon": noise,
        "v_prediction": alpha * noise - sigma * x0,
        "sample": x0,
        "flow_prediction": noise - x0,
    }[kind]
    torch.testing.assert_close(to_x0(prediction, x, alpha, sigma, kind), x0)
    torch.testing.assert_close(to_epsilon(prediction, x, alpha, sigma, kind), noise)
    with pytest.raises(InputError, match="prediction_type"):
        to_x0(prediction, x, alpha, sigma, "score")


def test_second_order_timesteps_are_counted_once():
    from diffusers import HeunDiscreteScheduler

    scheduler = HeunDiscreteScheduler()
    scheduler.set_timesteps(4)
    assert len(scheduler.timesteps) == 7
    assert len(distinct_timesteps(scheduler.timesteps)) == 4


def test_image_to_image_counts_only_the_steps_it_runs():
    from diffusers import StableDiffusionImg2ImgPipeline

    parts = {k: v for k, v in tiny_pipeline("sd").components.items() if k != "image_encoder"}
    pipe = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    hook = Recorder(pipe)
    attach_hook(hook, "recorder")
    pipe(
        "a red circle",
        image=torch.rand(1, 3, 32, 32),
        strength=0.5,
        num_inference_steps=6,
        output_type="latent",
    )
    assert [seen[:2] for seen in hook.seen] == [(0, 3), (1, 3), (2, 3)]


def test_latents_of_a_seed_do_not_depend_on_the_batch():
    assert torch.equal(seeded_latents([3, 4], (4, 8, 8))[1], seeded_latents([4], (4, 8, 8))[0])


def test_unknown_hosts_double_names_and_copies_are_refused():
    pipe = tiny_pipeline("dit")
    handle = attach_hook(Recorder(pipe), "one")
    with pytest.raises(InputError, match="already"):
        attach_hook(Recorder(pipe), "one")
    with pytest.raises(InputError, match="detach"):
        copy.deepcopy(pipe.transformer)
    handle.detach()
    handle.detach()
    copy.deepcopy(pipe.transformer)
    with pytest.raises(UnsupportedHostError, match="object is not supported"):
        layout_of(object())
    with pytest.raises(InputError, match="family"):
        tiny_pipeline("vqgan")


def test_pipelines_load_from_a_directory_and_bad_ones_are_refused(tmp_path):
    folder = tmp_path / "model"
    tiny_pipeline("sd").save_pretrained(folder)
    pipe = load_pipeline(folder, families=("sd",))
    twin = tiny_pipeline("sd")
    for name in ("unet", "text_encoder"):
        weights = getattr(twin, name).state_dict()
        assert all(torch.equal(value, weights[k]) for k, value in getattr(pipe, name).state_dict().items())
    torch.testing.assert_close(draw(pipe, "sd"), draw(twin, "sd"), rtol=1e-3, atol=1e-3)
    with pytest.raises(InputError, match="needed: sd3"):
        load_pipeline(folder, families=("sd3",))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelNotFoundError, match="model"):
        load_pipeline(folder)
    weights.unlink()
    with pytest.raises(ModelNotFoundError, match="model"):
        load_pipeline(folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "DDPMPipeline"}))
    with pytest.raises(UnsupportedHostError, match="DDPMPipeline, which is not supported"):
        load_pipeline(folder)
    index.write_text("{")
    with pytest.raises(ModelNotFoundError, match="corrupt"):
        load_pipeline(folder)
    with pytest.raises(ModelNotFoundError, match="model_index"):
        load_pipeline(tmp_path)
    with pytest.raises(ModelNotFoundError, match="no model at"):
        load_pipeline(tmp_path / "gone" / "deep")
