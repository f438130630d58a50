"""A pipeline as a policy: fed as by its host, scored as drawn, its adapters neutral, saved as the host loads them."""

import copy
import logging.handlers

import numpy as np
import pytest
import torch
from noiseworks.core.errors import ArtifactError, InputError, NonFiniteError, UnsupportedHostError
from noiseworks.kits.diffusers_hosts import denoiser_of, sample_generators, tiny_inputs, tiny_pipeline
from noiseworks.kits.image_tuning import (
    Policy,
    Rollout,
    Trajectories,
    add_lora,
    load_lora,
    reference,
    save_lora,
)
from noiseworks.kits.image_tuning.chain import sampling_scheduler

PROMPTS = ("a red circle", "a blue square")
FAMILIES = ("sd", "sdxl", "sd3", "flux")


def policy_of(family, pipe=None, **changes):
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "size": 32} | changes
    call = {"max_sequence_length": 16} if family in ("sd3", "flux") else None
    pipe = tiny_pipeline(family) if pipe is None else pipe
    if family == "sdxl":  # its scheduler's timesteps end at 0
        pipe.scheduler = type(pipe.scheduler).from_config(
            pipe.scheduler.config, steps_offset=1, timestep_spacing="leading"
        )
    return Policy(pipe, PROMPTS, Rollout(**settings), call)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_prediction_is_the_hosts(family):
    policy = policy_of(family)
    pipe, seen = policy.pipe, []
    scheduler = sampling_scheduler(pipe.scheduler)
    pipe.scheduler = scheduler
    step = scheduler.step

    def watched(prediction, timestep, sample, *args, **kwargs):
        seen.append((prediction, sample))
        return step(prediction, timestep, sample, *args, **kwargs)

    scheduler.step = watched
    inputs = tiny_inputs(family, 2, 3.0) | {"prompt": list(PROMPTS)}
    if family == "flux":
        inputs["negative_prompt"] = ["", ""]
    pipe(**inputs, num_inference_steps=4, generator=sample_generators([0, 1]), output_type="latent")
    prediction, sample = seen[1]
    found = policy.predict(sample, torch.tensor([1, 1]), torch.arange(2))
    torch.testing.assert_close(found, prediction.float(), rtol=1e-4, atol=1e-5)
    one = policy.predict(sample[1:], torch.tensor([1]), torch.tensor([1]))
    torch.testing.assert_close(one, found[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_drawn_is_scored_the_same_again(family):
    policy = policy_of(family)
    drawn = policy.roll_out(torch.tensor([0, 1, 0]), [5, 5, 7], [0, 1, 2])
    assert drawn.latents.shape[:2] == (3, 5)
    assert torch.equal(drawn.latents[0, 0], drawn.latents[1, 0]), "one seed of the start, one start"
    assert not torch.equal(drawn.latents[0, 1], drawn.latents[1, 1])
    places = torch.tensor([2, 2, 2])
    found = policy.log_prob(drawn, torch.arange(3), places)
    assert torch.equal(found.detach(), drawn.log_probs[:, 2]), "the ratio is exactly 1 in the same batch"
    table = policy.log_probs(drawn)
    torch.testing.assert_close(table, drawn.log_probs, rtol=1e-4, atol=1e-4)
    alone = policy.roll_out(torch.tensor([1]), [5], [1])
    torch.testing.assert_close(alone.latents[0], drawn.latents[1], rtol=1e-3, atol=1e-4)
    images = policy.decode(drawn.latents[:, -1])
    assert images.shape == (3, 3, 32, 32)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1


def test_a_chain_may_be_walked_in_parts_and_counts_its_calls():
    policy = policy_of("sd")
    ids, generators = torch.tensor([0, 1]), sample_generators([3, 4])
    start = policy.first_latents([1, 2])
    first, logp = policy.walk(start, ids, generators, 0, 2)
    rest, more = policy.walk(first[:, -1], ids, generators, 2)
    assert policy.calls == 2 * 2 * 4
    whole = policy.roll_out(ids, [1, 2], [3, 4])
    torch.testing.assert_close(torch.cat([start[:, None], first, rest], 1), whole.latents)
    torch.testing.assert_close(torch.cat([logp, more], 1), whole.log_probs)
    assert policy_of("sd", guidance_scale=1.0).conditions.uncond is None


def test_adapters_are_neutral_at_first_and_leave_the_base_alone():
    pipe = tiny_pipeline("sd")
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 16, 32)
    before = pipe.unet(x, 7, text).sample
    weights = add_lora(pipe.unet, 4, seed=1)
    assert all(p.dtype == torch.float32 for p in weights.values())
    assert torch.equal(pipe.unet(x, 7, text).sample, before)
    for parameter in weights.values():
        parameter.data.normal_()
    assert not torch.equal(pipe.unet(x, 7, text).sample, before)
    with reference(pipe.unet):
        assert torch.equal(pipe.unet(x, 7, text).sample, before)
    with pytest.raises(RuntimeError, match="channels"), reference(pipe.unet):
        pipe.unet(x[:, :3], 7, text)
    assert all(p.requires_grad for p in weights.values())
    assert not torch.equal(pipe.unet(x, 7, text).sample, before)
    with pytest.raises(InputError, match="adapters already"):
        add_lora(pipe.unet, 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_adapter_is_an_ordinary_lora_of_the_host(family, tmp_path):
    pipe = tiny_pipeline(family)
    plain = copy.deepcopy(pipe)
    for parameter in add_lora(denoiser_of(pipe), 2, seed=1).values():
        parameter.data.normal_(std=0.1)
    save_lora(pipe, tmp_path / "lora")

    def draw(one):
        inputs = tiny_inputs(family, 1)
        return one(
            **inputs, num_inference_steps=2, generator=sample_generators([0]), output_type="latent"
        ).images

    tuned, base, stock = draw(pipe), draw(plain), tiny_pipeline(family)
    stock.load_lora_weights(tmp_path / "lora")
    assert torch.equal(draw(stock), tuned)
    assert not torch.equal(tuned, base)
    load_lora(plain, tmp_path / "lora")
    assert torch.equal(draw(plain), tuned)


STOCK = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "noiseworks":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Nothing())
import numpy, torch
from diffusers import StableDiffusionPipeline

folder = sys.argv[1]
pipe = StableDiffusionPipeline.from_pretrained(f"{folder}/model")
pipe.load_lora_weights(f"{folder}/lora")
call = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "np"}
numpy.save(f"{folder}/image.npy", pipe("a red circle", **call).images)
assert not [name for name in sys.modules if name.partition(".")[0] == "noiseworks"]
"""


@pytest.mark.slow
def test_an_adapter_gives_the_same_image_in_a_process_without_noiseworks(tmp_path, warm):
    pipe = tiny_pipeline("sd")
    pipe.save_pretrained(tmp_path / "model")
    call = {"num_inference_steps": 2, "output_type": "np"}
    base = pipe("a red circle", generator=torch.Generator().manual_seed(0), **call).images
    for parameter in add_lora(pipe.unet, 2, seed=1).values():
        parameter.data.normal_(std=0.1)
    save_lora(pipe, tmp_path / "lora")
    tuned = pipe("a red circle", generator=torch.Generator().manual_seed(0), **call).images
    (tmp_path / "program.py").write_text(STOCK)
    done = warm("python", tmp_path / "program.py", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.load(tmp_path / "image.npy")
    assert np.array_equal(found, tuned)
    assert not np.array_equal(found, base)


def test_adapters_of_other_models_are_refused(tmp_path):
    pipe = tiny_pipeline("sdxl")
    add_lora(pipe.unet, 2)
    save_lora(pipe, tmp_path / "sdxl")
    other = tiny_pipeline("sd3")
    add_lora(other.transformer, 2)
    save_lora(other, tmp_path / "sd3")
    (tmp_path / "cut").mkdir()
    data = (tmp_path / "sdxl" / "pytorch_lora_weights.safetensors").read_bytes()
    (tmp_path / "cut" / "pytorch_lora_weights.safetensors").write_bytes(data[:-9])
    logged = logging.handlers.BufferingHandler(100)
    logging.getLogger("diffusers").addHandler(logged)
    for name in ("sdxl", "sd3", "cut", "missing"):
        with pytest.raises(InputError, match=name) as found:
            load_lora(tiny_pipeline("sd"), tmp_path / name)
        assert "\n" not in str(found.value)
        assert not str(found.value).endswith(":")
    logging.getLogger("diffusers").removeHandler(logged)
    assert not logged.buffer, "one sentence, not a line for each layer"


def test_trajectories_come_back_exactly_and_only_to_what_drew_them(tmp_path):
    policy = policy_of("sd")
    drawn = policy.roll_out(torch.tensor([0, 1]), [1, 2], [3, 4]).with_rewards(torch.tensor([0.5, 1.0]))
    drawn.save(tmp_path / "drawn", policy.fingerprint)
    found = Trajectories.load(tmp_path / "drawn", policy_of("sd").fingerprint)
    assert found.prompts == drawn.prompts
    for name in ("latents", "log_probs", "prompt_ids", "seeds", "rewards"):
        assert torch.equal(getattr(found, name), getattr(drawn, name))
    assert torch.equal(found.x_prev[:, :-1], found.x_t[:, 1:])
    others = [policy_of("sd", guidance_scale=2.0), policy_of("sd", eta=0.5)]
    others.append(policy_of("sd", tiny_pipeline("sd", seed=1)))
    for other in others:
        with pytest.raises(ArtifactError, match="drawn with another"):
            Trajectories.load(tmp_path / "drawn", other.fingerprint)
    add_lora(policy.pipe.unet, 2)
    assert policy.fingerprint == policy_of("sd").fingerprint, "adapters are no part of the base"


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="prompt"):
        Policy(tiny_pipeline("sd"), [" "], Rollout(num_inference_steps=2))
    with pytest.raises(UnsupportedHostError, match="dit"):
        Policy(tiny_pipeline("dit"), PROMPTS, Rollout())
    policy = policy_of("sd")
    with pytest.raises(InputError, match="not among"):
        policy.ids_of(["a cross"])
    policy.denoiser.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="latents"):
        policy.roll_out(torch.tensor([0]), [0], [0])
