"""The claim: the time to a score, the scenes, networks of equal size, shipped models, the smoke run."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from noiseworks.bench import shipped
from noiseworks.ldm import claim, claim_training, evidence
from noiseworks.ldm.claim_training import TimedScores, seconds_to_reach
from noiseworks.ldm.diffusion.model import LatentModel
from noiseworks.ldm.diffusion.objective import make_scheduler

COUNTS = [4, 6, 2, 9, 3]  # values of shape, colour, size, position and background


@pytest.mark.parametrize(
    ("score", "expected"),
    [(0.0, 0.0), (0.1, 1.0), (0.2, 2.0), (0.3, 3.0), (0.4, 4.0), (0.9, 8.0)],
)
def test_time_to_a_score_is_linear_between_marks_and_at_most_the_whole_time(score, expected):
    assert seconds_to_reach(score, (2.0, 4.0, 8.0), (0.2, 0.4, 0.3)) == pytest.approx(expected)


def test_scenes_hold_one_object_and_their_attributes_are_numbered():
    scenes = evidence.single_scenes(40, 3, "test")
    assert len(scenes) == 40
    assert all(len(scene.objects) == 1 for scene in scenes)
    assert evidence.single_scenes(10, 3, "test") == scenes[:10]
    values = evidence.attribute_values()
    numbers = evidence.attribute_numbers(scenes, values)
    assert [len(column) for column in values] == COUNTS
    for row, scene in zip(numbers.tolist(), scenes, strict=True):
        names = tuple(column[number] for column, number in zip(values, row, strict=True))
        assert names == evidence.attribute_names(scene)


def test_oracle_reads_rendered_scenes_and_not_noise():
    scenes = evidence.single_scenes(12, 3, "test")
    images = evidence.rendered(scenes)
    assert evidence.oracle_scores(images, scenes).mean() > 0.95
    assert evidence.oracle_scores(torch.zeros_like(images), scenes).mean() < 0.1


def test_both_arms_have_about_the_same_number_of_parameters():
    counts = {}
    for arm, space in claim.SPACES.items():
        unet, _ = claim_training.make_networks(space, COUNTS, 0)
        counts[arm] = sum(parameter.numel() for parameter in unet.parameters())
    assert 0.75 < counts["latent"] / counts["pixels"] < 1.33
    assert max(counts.values()) < 600_000


def test_a_kept_model_comes_back_as_it_was_trained(tmp_path):
    unet, conditioner = claim_training.make_networks(claim.SPACES["latent"], COUNTS, 5)
    schedule = make_scheduler(prediction_type="sample")
    settings, tensors = claim_training.state_of(
        LatentModel(unet.half().float(), None, schedule, conditioner.half().float(), 0.7)
    )
    shipped.save(tmp_path, "latent", settings, tensors)
    loaded = claim_training.rebuilt("latent", COUNTS, None, *shipped.load_from(tmp_path, "latent"))
    assert loaded.scale_factor == 0.7
    assert loaded.scheduler.config.prediction_type == "sample"
    for name, value in loaded.unet.state_dict().items():
        assert torch.equal(value, unet.state_dict()[name])


def test_what_ships_fits_the_networks():
    for arm in claim.SPACES:
        config, tensors = shipped.load(claim.PACKAGE, arm)
        model = claim_training.rebuilt(arm, COUNTS, None, config, tensors)
        assert all(parameter.isfinite().all() for parameter in model.unet.parameters())
        assert config["reached"] > 0


def test_the_smallest_pixel_score_is_that_of_scenes_drawn_without_the_request():
    asked, drawn = evidence.single_scenes(400, 3, "test"), evidence.single_scenes(400, 4, "train")
    score = evidence.oracle_scores(evidence.rendered(drawn), asked).mean()
    assert score == pytest.approx(claim.SMALLEST_PIXEL_SCORE, abs=0.03)


def test_encoding_the_training_images_counts_as_training_time():
    timed = TimedScores([1.0, 2.0], lambda: (np.ones(1), torch.zeros(1)), used=1.5)
    trainer, module = SimpleNamespace(should_stop=False), SimpleNamespace(device=torch.device("cpu"))
    timed.on_train_start(trainer, module)
    timed.on_train_batch_end(trainer)
    assert timed.seconds[0] >= 1.5
    assert seconds_to_reach(0.5, (3.5,), (1.0,), start=1.5) == pytest.approx(2.5)
