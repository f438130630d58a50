"""Pairs, the loss of a step and labels against their definitions."""

import json
import math

import pytest
import torch
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.d3po import agreement, d3po_step_loss, loss_bounds, pair_preferences, read_labels
from noiseworks.d3po.labels import merged, read_samples
from noiseworks.d3po.objective import pairs_of
from noiseworks.kits.image_tuning import step_ratio_loss


def test_pairs_follow_the_scores():
    scores = torch.tensor([[0.0, -0.5, -1.0], [1.0, 1.0, 1.0], [3.0, 5.0, 4.0]])[..., None]
    assert pair_preferences(scores).tolist() == [[1, 1, 1], [0, 0, 0], [-1, -1, 1]]
    assert pair_preferences(scores, "best_worst").tolist() == [[0, 1, 0], [0, 0, 0], [-1, 0, 0]]
    assert pair_preferences(scores, "adjacent").tolist() == [[1, 0, 1], [0, 0, 0], [0, -1, 1]]
    several = torch.tensor([[[30.0, 8, 6], [20, 8, 5]], [[40, 4, 4], [30, 8, 6]]])
    assert pair_preferences(several).tolist() == [[1], [0]]
    with pytest.raises(InputError, match="one number"):
        pair_preferences(several, "adjacent")
    with pytest.raises(InputError, match="NaN"):
        pair_preferences(scores / 0)


def test_the_loss_of_a_prompt_is_the_mean_over_its_pairs():
    g = torch.Generator().manual_seed(0)
    logp = torch.randn(5, 4, generator=g, dtype=torch.float64).mul(0.05).requires_grad_()
    reference = torch.randn(5, 4, generator=g, dtype=torch.float64) * 0.05
    h = pair_preferences(
        torch.tensor([[0, 0, 1, 2], [1, 0, 0, 0], [3, 2, 1, 0], [0, 1, 0, 1]])[..., None]
    ).double()
    h = h[[0, 1, 2, 3, 0]]
    found = d3po_step_loss(logp, reference, h, 2.0, 0.1).values
    for row in range(5):
        one = [
            step_ratio_loss((logp - reference)[row, pair][None], torch.stack([sign, -sign])[None], 2.0, 0.1)
            for pair, sign in zip(pairs_of(4), h[row], strict=True)
            if sign
        ]
        torch.testing.assert_close(found[row], torch.cat(one).mean(), rtol=1e-12, atol=0)
    same = d3po_step_loss(logp, logp.detach(), h, 2.0, 0.1)
    assert same.values.detach() == pytest.approx(math.log(2))
    assert same.figures["accuracy"].tolist() == pytest.approx([0.5] * 5)
    (gradient,) = torch.autograd.grad(same.values.sum(), logp)
    assert gradient.abs().max() > 0.1


def test_bounds():
    assert loss_bounds(0.1, 0.1) == pytest.approx((0.6831640, 0.7032311), abs=1e-7)
    assert loss_bounds(0.1, None) == (0.0, math.inf)


def test_samples_without_prompts_or_images_are_refused(tmp_path):
    file = tmp_path / "samples.json"
    said = {"prompts": ["a red circle", "a cross"], "copies": 2}
    for number in range(3):
        (tmp_path / f"{number:05d}.png").touch()
    for change in (
        {"prompts": []},
        {"prompts": ["a", " "]},
        {"prompts": "a"},
        {"copies": "2"},
        {"copies": 1},
    ):
        file.write_text(json.dumps(said | change))
        with pytest.raises(ArtifactError, match="no prompts or no number"):
            read_samples(file)
    file.write_text(json.dumps(said))
    assert read_samples(file) == (said["prompts"], 2)
    with pytest.raises(ArtifactError, match=r"00003\.png is missing"):
        read_samples(file, images=True)
    (tmp_path / "00003.png").touch()
    assert read_samples(file, images=True) == (said["prompts"], 2)


def test_labels_are_merged_and_checked(tmp_path):
    for name, text in {"a": [[0, 0, -1]], "b": [[0, -1, -1]]}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(text))
    labels = read_labels(tmp_path, 1, 3)
    assert merged(labels).tolist() == [[0, -0.5, -1]]
    assert pair_preferences(merged(labels)[..., None]).tolist() == [[1, 1, 1]]
    assert agreement(labels) == 1
    assert agreement([[[0, 1]], [[1, 0]]]) == 0
    assert agreement([[[0, 0]], [[1, 0]]]) is None
    bad = {"[[0, 0]]": "3 numbers", "[[0, 0, NaN]]": "3 numbers", "[]": "1 prompts", "{": "no JSON"}
    for text, word in bad.items():
        (tmp_path / "c.txt").write_text(text)
        with pytest.raises(InputError, match=word):
            read_labels(tmp_path / "c.txt", 1, 3)
    with pytest.raises(InputError, match="no labels"):
        read_labels(tmp_path / "none", 1, 3)
