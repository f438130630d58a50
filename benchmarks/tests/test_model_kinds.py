"""Folders of models are told apart by their files, and a wrong one is refused before any work."""

from dataclasses import replace
from pathlib import Path

import pytest
from noiseworks.bench.runner.kinds import check_kind, kind_of
from noiseworks.bench.runner.session import bench
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model

KINDS = {
    "shapes": "pipeline",
    "shapes-sd3": "pipeline",
    "shapes-vae": "autoencoder",
    "countdown": "language model",
    "countdown-ar": "language model",
    "tabletop-unet": "policy",
    "tabletop-transformer": "policy",
}


@pytest.mark.parametrize("name", KINDS)
def test_shipped_models_are_told_apart(name):
    assert kind_of(Path(resolve_model(f"testbed:{name}"))) == KINDS[name]


def test_folders_that_say_nothing_have_no_kind(tmp_path):
    assert kind_of(tmp_path) is None
    for text in ("[]", "no json", '{"_class_name": "UNet2DModel"}'):
        (tmp_path / "config.json").write_text(text)
        assert kind_of(tmp_path) is None
    with pytest.raises(InputError, match="no model that is known here"):
        check_kind(str(tmp_path), "policy", "bac")


def test_a_hub_id_is_left_to_the_loader():
    check_kind("org/model", "policy", "bac")


def test_a_model_of_another_kind_is_refused_before_the_run(fakes, tmp_path, monkeypatch):
    import fake_claims

    monkeypatch.setattr(fake_claims, "STEADY", replace(fake_claims.STEADY, model_kind="pipeline"))
    with pytest.raises(
        InputError, match="fake-steady needs a pipeline as --model, but testbed:countdown holds a lang"
    ):
        bench(methods=["fake-steady"], model="testbed:countdown", out=tmp_path / "out", open_report=False)
    assert not (tmp_path / "out").exists()
