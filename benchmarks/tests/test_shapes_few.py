"""The few-step model of `shapes`, and what it was distilled on."""

from pathlib import Path

import pytest
import torch
from noiseworks.bench.testbeds.cards import list_cards
from noiseworks.bench.testbeds.shapes import caption, sample_scenes, score
from noiseworks.bench.testbeds.shapes import evaluation as ev
from noiseworks.bench.testbeds.shapes.tastes import sharpness
from noiseworks.core.models import resolve_model


def test_four_steps_are_as_right_and_as_sharp_as_the_teachers_twenty():
    pipe, scenes = ev.load(Path(resolve_model("testbed:shapes-few"))), sample_scenes(40, 13, "test")
    images = ev.sample(pipe, [caption(scene) for scene in scenes], 1.0, steps=4, seed=13)
    assert pipe.scheduler.timesteps.tolist() == [999, 749, 499, 249]
    quality = next(card["quality"] for card in list_cards() if card["name"] == "shapes-few")
    # 40 prompts: the standard error of a share is about 0.04.
    assert (
        score(images, scenes).mean()
        > quality["attributes right, teacher, 20 steps, guidance 4"]["value"] - 0.1
    )
    sharp = sharpness(torch.from_numpy(images).permute(0, 3, 1, 2)).mean()
    assert sharp > quality["sharpness, teacher, 20 steps, guidance 4"]["value"] - 0.1
    assert quality["attributes right, teacher, 4 steps, guidance 4"]["value"] < 0.8


def test_segments_start_where_the_sampler_does_and_end_cleaner():
    pytest.importorskip("noiseworks.ldm")
    from noiseworks.bench.testbeds.shapes import few_step_training as few
    from noiseworks.bench.testbeds.shapes import recipes

    table = few.prepare_segments("noisy", 16)
    latents = recipes.encode_scenes(sample_scenes(16, recipes.TRAIN_SEED))["mean"]
    latents = latents * recipes.shipped_vae().config.scaling_factor
    away = {name: (table[name] - latents).square().mean((1, 2, 3)).sqrt() for name in ("start", "end")}
    assert table["segment"].tolist() == [0, 1, 2, 3] * 4
    assert float(table["start"][::4].std()) == pytest.approx(1, abs=0.1)
    assert float(away["end"][3::4].max()) < 0.5 * float(away["start"][3::4].min())
    module = few.build_few_step(table)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        last = {name: values[3::4] for name, values in table.items()}
        loss = module.diffusion_loss(last, generator)
        abar = module.alphas_cumprod[249]
        missed = module._x0(module.unet, last["start"], torch.tensor([249] * 4), module.condition(last, None))
        missed = (missed - last["end"]).square().mean((1, 2, 3))
    expected = ((missed + few.HUBER**2).sqrt() - few.HUBER).mean() * (abar / (1 - abar)) ** 0.25
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
