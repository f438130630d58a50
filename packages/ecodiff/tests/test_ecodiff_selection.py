"""Which units stay: ratios, budgets, thresholds, and what the baselines score."""

import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.ecodiff import Cut, Runs, Sampling, select
from noiseworks.ecodiff.importance import magnitude_scores, random_scores, taylor_scores
from noiseworks.kits.diffusers_hosts import find_units, tiny_pipeline

PIPE = tiny_pipeline("sd")
UNITS = find_units(PIPE.unet)


def test_ratio_keeps_int_n_ratio_of_a_family():
    scores = random_scores(UNITS, 0)
    kept = select(scores, UNITS, Cut(ratio_attn=0.61, ratio_ffn=1.0))
    heads = [path for path, group in UNITS.groups.items() if group.kind == "attn"]
    count = sum(UNITS.groups[path].count for path in heads)
    assert sum(len(kept[path]) for path in heads) == int(count * 0.61)
    lowest_kept = min(float(scores[path][kept[path]].min()) for path in heads if kept[path])
    gone = [v for path in heads for i, v in enumerate(scores[path].tolist()) if i not in kept[path]]
    assert max(gone) < lowest_kept
    local = select(scores, UNITS, Cut(ratio_attn=0.61, scope="local"))
    assert all(len(local[path]) == int(UNITS.groups[path].count * 0.61) for path in heads)


def test_global_and_local_agree_for_one_layer_and_ties_keep_the_earlier_unit():
    units = find_units(PIPE.unet, ("attn",), include=r"down_blocks.*attn1")
    path = next(iter(units.groups))
    scores = {path: torch.tensor([1.0, 3.0, 1.0, 0.0, 3.0, 2.0, 1.0, 2.0])}
    both = [select(scores, units, Cut(ratio_attn=0.75, scope=scope)) for scope in ("global", "local")]
    assert both[0] == both[1] == {path: [0, 1, 2, 4, 5, 7]}
    budget = select(scores, units, Cut(target_prunable=0.75))
    assert budget == both[0]


def test_budget_is_met_by_parameters_and_not_by_units():
    kept = select(random_scores(UNITS, 1), UNITS, Cut(target_prunable=0.8))
    gone = UNITS.total - UNITS.kept_parameters(kept)
    assert gone == pytest.approx(0.2 * UNITS.prunable, abs=max(UNITS.prices.values()))
    with pytest.raises(InputError, match="out of reach"):
        select(random_scores(UNITS, 1), UNITS, Cut(target_params=0.5))


def test_threshold_and_width_of_feed_forward_layers():
    scores = {path: torch.linspace(-1, 1, group.count) for path, group in UNITS.groups.items()}
    kept = select(scores, UNITS, Cut(threshold=0.3, multiple_of=8))
    for path, group in UNITS.groups.items():
        above = (scores[path] > 0.3).nonzero().flatten().tolist()
        assert set(above) <= set(kept[path])
        if group.kind == "ffn":
            assert len(kept[path]) % 8 == 0
            assert len(kept[path]) - len(above) < 8
        else:
            assert kept[path] == above


def test_equal_scores_are_no_ranking():
    even = {path: torch.ones(group.count) for path, group in UNITS.groups.items()}
    with pytest.raises(InputError, match="same score"):
        select(even, UNITS, Cut(target_prunable=0.9))
    with pytest.raises(InputError, match="one of"):
        select(random_scores(UNITS, 0), UNITS, Cut(target_prunable=0.9, threshold=0.0))


def test_a_permutation_of_heads_permutes_the_scores():
    pipe = tiny_pipeline("sd")
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    layer, width = pipe.unet.get_submodule(path), 4
    before = magnitude_scores(pipe.unet, UNITS)[path]
    lines = torch.arange(32).view(8, width).flip(0).flatten()
    with torch.no_grad():
        for name in ("to_q", "to_k", "to_v"):
            getattr(layer, name).weight.copy_(getattr(layer, name).weight[lines])
        layer.to_out[0].weight.copy_(layer.to_out[0].weight[:, lines])
    torch.testing.assert_close(magnitude_scores(pipe.unet, UNITS)[path], before.flip(0))


def test_taylor_gives_a_unit_that_does_nothing_no_score():
    pipe = tiny_pipeline("sd")
    path = "down_blocks.0.attentions.0.transformer_blocks.0.ff"
    with torch.no_grad():
        pipe.unet.get_submodule(path).net[2].weight[:, 3] = 0
    runs = Runs(pipe, ["a red circle", "a blue square"], Sampling(num_inference_steps=2, batch_size=2))
    scores = taylor_scores(pipe.unet, UNITS, runs)
    assert float(scores[path][3]) == 0
    assert float(scores[path].max()) > 0
