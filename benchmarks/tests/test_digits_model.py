"""The pixel model of digits: it is made of the digits by its recipe, and the shipped one is what its card says."""

import json
from pathlib import Path

import pytest
import torch
from noiseworks.bench.testbeds import shipped_models
from noiseworks.bench.testbeds.digits import TRAIN_SIZE
from noiseworks.bench.testbeds.digits.recipes import RECIPES, digit_images

RECIPE = RECIPES["digits-pixels"]


def test_a_recipe_trains_and_publishes_what_is_measured(tmp_path: Path):
    data = RECIPE.prepare("noisy", None)
    assert data["image"].shape == (TRAIN_SIZE, 1, 8, 8)
    torch.testing.assert_close(data["image"] / 127.5 - 1, digit_images()[0], rtol=0, atol=0.004)
    module = RECIPE.build(data)
    optimizer = module.configure_optimizers()
    module.training_step({"image": data["image"][:4]}, 0).backward()
    optimizer.step()
    RECIPE.publish(module, tmp_path / "model")
    assert RECIPE.tune(tmp_path / "model", 8)["share_right"] < 1
    assert all(one["value"] > 0 for one in RECIPE.measure(tmp_path / "model", 8).values())


def test_the_shipped_model_is_the_card_s():
    folder = shipped_models()["digits-pixels"]
    card = json.loads((folder / "card.json").read_text())["quality"]
    found = RECIPE.measure(folder, 360)
    assert list(found) == list(card)
    for name, one in found.items():
        assert one["value"] == pytest.approx(card[name]["value"], rel=0.02)
