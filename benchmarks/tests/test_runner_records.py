"""Claims and measurements as JSON: what is kept, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from noiseworks.bench.claims import SEEDS, Ceiling, Floor, Measurement
from noiseworks.bench.runner.records import (
    MAX_POINTS,
    claim_record,
    measurement_record,
    targets_of,
)
from noiseworks.bench.runner.tasks import RESULT_NAME, read_result
from noiseworks.core.errors import InputError, NonFiniteError


@pytest.fixture
def claim(fakes):
    import fake_claims

    return fake_claims.STEADY


def test_a_result_is_used_again_for_the_settings_that_it_was_measured_with_alone(tmp_path):
    """A task's folder is named by a short digest, which does not decide alone."""
    assert read_result(tmp_path, {"seed": 1}) is None
    result = {"fingerprint": {"seed": 1, "sizes": [2, 3]}, "arms": {}}
    (tmp_path / RESULT_NAME).write_text(json.dumps(result))
    assert read_result(tmp_path, {"seed": 1, "sizes": (2, 3)}) == result
    assert read_result(tmp_path, {"seed": 2, "sizes": (2, 3)}) is None
    (tmp_path / RESULT_NAME).write_text(json.dumps(result)[:-5])
    assert read_result(tmp_path, {"seed": 1, "sizes": (2, 3)}) is None


def test_claim_survives_as_json(claim):
    record = json.loads(json.dumps(claim_record(claim, "quick")))
    assert targets_of(record) == list(claim.targets)
    assert record["seeds"] == [500, 501]
    assert record["settings"] == {"prompts": 20}
    assert record["preconditions"] == []


def test_targets_without_a_name_take_the_label_of_their_metric(claim):
    assert [target.name for target in claim.targets] == ["network calls", "oracle score"]
    twice = replace(claim, targets=(claim.targets[0], claim.targets[0]))
    with pytest.raises(InputError, match="two targets of fake-steady are called 'network calls'"):
        claim_record(twice, "quick")


def test_target_against_several_arms_survives_as_json(claim):
    several = replace(claim, targets=(replace(claim.targets[0], against=["plain", "ours"]),))
    record = json.loads(json.dumps(claim_record(several, "quick")))
    assert targets_of(record) == list(several.targets)


def test_tuning_is_the_laptop_scale_on_tuning_seeds(claim):
    laptop, tune = claim_record(claim, "laptop"), claim_record(claim, "tune")
    assert tune["settings"] == laptop["settings"]
    assert tune["seeds"] == [100, 101]
    assert set(tune["seeds"]) <= set(SEEDS["tune"])


@pytest.mark.parametrize(
    "condition", [Floor("nobody", "score", 0, ""), Ceiling("ours", "score", 0, "", against="x")]
)
def test_precondition_on_an_unknown_arm_is_refused(claim, condition):
    with pytest.raises(InputError, match="a precondition of fake-steady"):
        claim_record(replace(claim, preconditions=(condition,)), "quick")


def test_claim_without_the_scale_has_no_seeds(claim):
    record = claim_record(claim, "full")
    assert record["seeds"] == []
    assert record["scales"] == ["smoke", "quick", "laptop"]


def test_target_on_an_unknown_arm_is_refused(claim):
    wrong = replace(claim, targets=(replace(claim.targets[0], against="nobody"),))
    with pytest.raises(InputError, match="nobody"):
        claim_record(wrong, "quick")


def test_measurement_survives_as_json(tmp_path):
    (tmp_path / "a.png").write_bytes(b"png")
    measured = Measurement(
        {"calls": np.float32(3), "score": np.array([0.25, 0.5])},
        series={"loss": ([1, 2], [0.5, float("nan")])},
        images={"first": tmp_path / "a.png"},
        notes=["seen"],
    )
    record = json.loads(json.dumps(measurement_record(measured, tmp_path)))
    assert record["metrics"] == {"calls": 3.0, "score": [0.25, 0.5]}
    assert record["series"] == {"loss": [[1.0, 2.0], [0.5, None]]}
    assert record["images"] == {"first": "a.png"}
    assert record["notes"] == ["seen"]


def test_long_curves_keep_their_ends(tmp_path):
    steps = list(range(10_000))
    (xs, ys) = measurement_record(Measurement({}, series={"loss": (steps, steps)}), tmp_path)["series"][
        "loss"
    ]
    assert len(xs) == MAX_POINTS
    assert (xs[0], xs[-1], ys[-1]) == (0.0, 9999.0, 9999.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, float("nan")]])
def test_metric_that_is_not_finite_is_refused(value, tmp_path):
    with pytest.raises(NonFiniteError, match="'score'"):
        measurement_record(Measurement({"score": value}), tmp_path)


@pytest.mark.parametrize("value", [[], [[1.0], [2.0]]])
def test_metric_that_is_no_flat_list_is_refused(value, tmp_path):
    with pytest.raises(InputError, match="'score'"):
        measurement_record(Measurement({"score": value}), tmp_path)


def test_image_outside_the_folder_is_refused(tmp_path):
    folder = tmp_path / "task"
    folder.mkdir()
    (tmp_path / "a.png").write_bytes(b"png")
    for path in (tmp_path / "a.png", folder / "missing.png"):
        with pytest.raises(InputError, match="inside the task's folder"):
            measurement_record(Measurement({}, images={"first": path}), folder)


def test_curve_with_unequal_sides_is_refused(tmp_path):
    with pytest.raises(InputError, match="2 x values and 1 y values"):
        measurement_record(Measurement({}, series={"loss": ([1, 2], [1])}), tmp_path)
