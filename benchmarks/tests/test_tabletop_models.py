"""The shipped `tabletop` policies: they load, have a card, and solve what it says."""

import math

import pytest
from noiseworks.bench.testbeds import shipped_models
from noiseworks.bench.testbeds.cards import list_cards, model_size
from noiseworks.bench.testbeds.tabletop import TabletopBatch, recipes
from noiseworks.kits.policies import DiffusionPolicy, NativePolicy, episode_list, evaluate

SHIPPED = {name: path for name, path in shipped_models().items() if path.parents[1].name == "tabletop"}
CONFIGS = {
    "tabletop-unet": recipes.UNET,
    "tabletop-unet-scaled": recipes.SCALED_UNET,
    "tabletop-transformer": recipes.TRANSFORMER,
}
SEED = 300  # not the card's, so that the episodes are others


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_shipped_policy_fits_its_recipe_and_card(name):
    card = next(card for card in list_cards() if card["name"] == name)
    policy = NativePolicy.from_pretrained(f"testbed:{name}")
    assert policy.config == CONFIGS[name]
    assert card["size"] == model_size(SHIPPED[name])


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_shipped_policy_solves_what_its_card_says(name):
    figure = next(card for card in list_cards() if card["name"] == name)["quality"]["success, 10 DDIM steps"]
    env = TabletopBatch(60)
    policy = DiffusionPolicy(
        NativePolicy.from_pretrained(f"testbed:{name}"), solver="ddim", num_inference_steps=10, num_envs=60
    )
    share = evaluate(policy, env, *episode_list(range(12), 5, SEED)).success_rate
    spread = max(0.02, figure["value"] * (1 - figure["value"]))
    assert abs(share - figure["value"]) < 4 * math.sqrt(spread * (1 / 60 + 1 / figure["n"]))
