"""Guidance that never truncates, attached: what a pipeline can be asked for comes out as without it, bit for bit."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from noiseworks.kits.diffusers_hosts import sample_generators, seeded_latents, tiny_inputs, tiny_pipeline
from noiseworks.linear_ag import AdaptiveGuidance, attach

HOSTS = ("sd", "sdxl", "sd3", "pixart", "flux", "dit", "instruct-pix2pix", "img2img")
PROMPTED = tuple(host for host in HOSTS if host != "dit")
WITH_ETA = ("sd", "instruct-pix2pix", "img2img")
# Name -> hosts that can be called so, and what of the call is other than usual.
CALLS = {
    "list": (HOSTS, {}),
    "one": (HOSTS, {"batch": 1}),
    "unguided": (HOSTS, {"scale": 1.0}),
    "many": (PROMPTED, {"num_images_per_prompt": 2}),
    "text": (PROMPTED, {"batch": 1, "prompt": "a red circle", "num_images_per_prompt": 2}),
    "negative": (PROMPTED, {"negative_prompt": ["green square"] * 2}),
    "pil": (("sd", "sd3", "dit", "img2img"), {"output_type": "pil"}),
    "np": (("sdxl", "flux", "pixart", "instruct-pix2pix"), {"output_type": "np"}),
    "tuple": (("sd", "sdxl", "flux", "dit"), {"return_dict": False}),
    "one-generator": (("sd3", "pixart", "img2img"), {"generator": 0}),
    "callback": (tuple(host for host in PROMPTED if host != "pixart"), {"callback_on_step_end": "halve"}),
    "embeds": (("sd", "sdxl", "sd3", "pixart", "flux", "img2img"), {"prompt_embeds": True}),
    "latents": (("sd", "sdxl", "sd3", "pixart"), {"latents": True}),
    "eta": (WITH_ETA, {"eta": 0.7}),
    "clip-skip": (("sdxl", "sd3"), {"clip_skip": 1}),
    "rescale": (("sd", "sdxl"), {"guidance_rescale": 0.5}),
    "timesteps": (("sdxl", "pixart"), {"timesteps": [900, 500, 100]}),
    "sigmas": (("sdxl", "sd3", "flux"), {"sigmas": [1.0, 0.7, 0.2]}),
    "sizes": (("sdxl",), {"original_size": (64, 64), "crops_coords_top_left": (4, 2)}),
    "ends-early": (("sdxl",), {"denoising_end": 0.6}),
    "embedded-guidance": (("flux",), {"guidance_scale": 2.0}),
    "image-guidance-off": (("instruct-pix2pix",), {"image_guidance_scale": 1.0}),
    "mild": (("img2img",), {"strength": 0.6}),
}


@pytest.fixture(scope="module")
def pipes():
    found = {host: tiny_pipeline(host) for host in HOSTS if host != "img2img"}
    found["img2img"] = StableDiffusionImg2ImgPipeline.from_pipe(found["sd"])
    found["img2img"].set_progress_bar_config(disable=True)
    return found


def halve(pipe, step, timestep, kwargs):
    return {"latents": kwargs["latents"] / 2}


def embedded(pipe, inputs):
    """Return the inputs with embeddings in the place of prompts, as each pipeline names them."""
    prompts, names = inputs.pop("prompt"), pipe.encode_prompt.__code__.co_varnames
    asked = {"prompt": prompts, "device": torch.device("cpu"), "num_images_per_prompt": 1}
    for name in ("prompt_2", "prompt_3"):
        asked |= {name: None} if name in names else {}
    asked |= {"max_sequence_length": inputs["max_sequence_length"]} if "max_sequence_length" in inputs else {}
    asked |= {"clean_caption": False} if "clean_caption" in names else {}
    asked |= {"do_classifier_free_guidance": True} if "do_classifier_free_guidance" in names else {}
    made = pipe.encode_prompt(**asked)
    kind = type(pipe).__name__
    if "PixArt" in kind:
        keys = (
            "prompt_embeds",
            "prompt_attention_mask",
            "negative_prompt_embeds",
            "negative_prompt_attention_mask",
        )
        inputs["negative_prompt"] = None
    elif "XL" in kind or "3" in kind:
        keys = (
            "prompt_embeds",
            "negative_prompt_embeds",
            "pooled_prompt_embeds",
            "negative_pooled_prompt_embeds",
        )
    elif "Flux" in kind:
        keys = ("prompt_embeds", "pooled_prompt_embeds")
    else:
        keys = ("prompt_embeds", "negative_prompt_embeds")
    return inputs | dict(zip(keys, made, strict=False))


def ask(pipe, host, batch=2, scale=4.0, **extra):
    """Call a pipeline and return what it drew as one array."""
    inputs = tiny_inputs("sd" if host == "img2img" else host, batch, scale)
    if host == "img2img":
        picture = torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32).expand(batch, -1, -1, -1)
        inputs = {key: value for key, value in inputs.items() if key not in ("height", "width")}
        inputs |= {"image": picture, "strength": 0.8}
    if extra.pop("prompt_embeds", False):
        inputs = embedded(pipe, inputs)
    if extra.get("latents"):
        extra["latents"] = seeded_latents(range(batch), (pipe.vae.config.latent_channels, *size(pipe)))
    if extra.get("callback_on_step_end"):
        extra["callback_on_step_end"] = halve
    if "timesteps" not in extra and "sigmas" not in extra:
        extra["num_inference_steps"] = 2
    seeds = range(batch * extra.get("num_images_per_prompt", 1))
    shared = "generator" in extra
    extra["generator"] = torch.Generator().manual_seed(0) if shared else sample_generators(seeds)
    extra.setdefault("output_type", "pt" if host == "dit" else "latent")
    found = pipe(**inputs | extra)
    images = found[0] if isinstance(found, tuple) else found.images
    return np.stack([np.asarray(image) for image in images])


def size(pipe):
    return [32 // pipe.vae_scale_factor] * 2


@pytest.mark.parametrize(
    ("call", "host"), [(call, host) for call, (hosts, _) in CALLS.items() for host in hosts]
)
def test_a_call_gives_what_it_gives_plain(pipes, host, call):
    pipe, extra = pipes[host], CALLS[call][1]
    plain = ask(pipe, host, **extra)
    with attach(pipe, AdaptiveGuidance(threshold=1.5)) as ag:
        guided = ask(pipe, host, **extra)
    assert np.array_equal(guided, plain)
    assert np.isfinite(plain).all()
    if call != "unguided":
        assert set(ag.report.actions) == {"2" * len(ag.report.actions[0])}
