import json
from pathlib import Path

import numpy as np
import pytest
import torch
from noiseworks.bench.testbeds import shipped_models
from noiseworks.bench.testbeds.cards import figure, list_cards, model_size
from noiseworks.bench.testbeds.shapes import caption, render, sample_scenes, score
from noiseworks.bench.testbeds.shapes import evaluation as ev
from noiseworks.bench.testbeds.shapes.architectures import CLASSES
from noiseworks.core.models import resolve_model

PIPELINES = {
    "shapes": "StableDiffusionPipeline",
    "shapes-sd3": "StableDiffusion3Pipeline",
    "shapes-dit": "DiTPipeline",
}


def folder(name):
    return Path(resolve_model(f"testbed:{name}"))


@pytest.fixture(scope="module")
def cards():
    return {card["name"]: card for card in list_cards()}


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_load_with_stock_classes_and_run_in_float32(name):
    import diffusers

    pipeline = getattr(diffusers, PIPELINES[name]).from_pretrained(folder(name))
    assert type(pipeline).__name__ == PIPELINES[name]
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert {p.dtype for module in modules for p in module.parameters()} == {torch.float32}
    pipeline.set_progress_bar_config(disable=True)
    prompt = pipeline.get_label_ids(["red circle"]) if name == "shapes-dit" else "a red circle"
    images = pipeline(prompt, num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 32, 32, 3)
    assert np.isfinite(images).all()


def test_labels_of_the_class_model_are_colour_and_shape():
    config = json.loads((folder("shapes-dit") / "model_index.json").read_text())
    assert tuple(config["id2label"].values()) == CLASSES


def test_first_stage_keeps_every_attribute():
    vae, scenes = ev.load_vae(folder("shapes-vae")), sample_scenes(100, 11, "heldout")
    images = render(scenes)
    decoded = ev.reconstruct(vae, images)
    assert score(decoded, scenes).mean() >= 0.97
    assert ev.psnr(decoded, images).mean() > 33


def test_first_stage_latents_have_unit_scale():
    vae = ev.load_vae(folder("shapes-vae"))
    images = torch.from_numpy(render(sample_scenes(200, 12))).permute(0, 3, 1, 2) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.sample(torch.Generator().manual_seed(0))
    assert latents.shape == (200, 4, 8, 8)
    assert float((latents * vae.config.scaling_factor).std()) == pytest.approx(1, abs=0.05)


def test_guidance_helps_as_the_card_says(cards):
    quality = cards["shapes"]["quality"]
    pipeline, scenes = ev.load(folder("shapes")), sample_scenes(40, 13, "test")
    prompts = [caption(scene) for scene in scenes]
    shares = {g: score(ev.sample(pipeline, prompts, g, seed=13), scenes).mean() for g in (1.0, 4.0)}
    for guidance, share in shares.items():
        # 40 prompts: the standard error of a share is about 0.04.
        assert abs(share - quality[f"attributes right, guidance {guidance:g}"]["value"]) < 0.15
    assert shares[4.0] > shares[1.0] + 0.05


def test_sample_i_does_not_depend_on_the_batch():
    pipeline = ev.load(folder("shapes"))
    prompts = [
        "a red circle above a blue square on a white background",
        "two green crosses on a black background",
    ]
    both = ev.sample(pipeline, prompts, 4.0, steps=3, seed=5)
    alone = ev.sample(pipeline, prompts[1:], 4.0, steps=3, seed=6)
    np.testing.assert_allclose(both[1], alone[0], atol=1e-4)


def test_every_model_has_a_card_that_fits_it(cards):
    assert set(cards) == set(shipped_models())
    for name in ("shapes-vae", *PIPELINES):
        card = cards[name]
        assert card["size"] == model_size(folder(name))
        assert card["training"]["steps"] > 0
        for row in card["quality"].values():
            assert row["low"] <= row["value"] <= row["high"]
            assert row["n"] > 0


def test_sizes_stay_within_bounds():
    sizes = {
        name: sum(f.stat().st_size for f in folder(name).rglob("*") if f.is_file())
        for name in ("shapes-vae", *PIPELINES)
    }
    assert max(sizes.values()) <= 8e6
    assert sum(sizes.values()) <= 18e6


def test_intervals_hold_the_mean_and_shrink():
    values = np.random.default_rng(0).random(400)
    few, many = figure(values[:25]), figure(values)
    for row in (few, many):
        assert row["low"] < row["value"] < row["high"]
    assert many["high"] - many["low"] < few["high"] - few["low"]
    assert many["n"] == 400
