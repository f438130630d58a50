"""What a model's name may be."""

import pytest
from noiseworks.core import models
from noiseworks.core.errors import InputError, ModelNotFoundError
from noiseworks.core.models import resolve_model


def test_directories_resolve_to_themselves(tmp_path):
    assert resolve_model(tmp_path) == str(tmp_path)
    assert resolve_model(str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize("name", ["org/model", "stabilityai/stable-diffusion-xl-base-1.0", "a/b_c.d-e"])
def test_hub_ids_pass_as_they_are(name):
    assert resolve_model(name) == name


@pytest.mark.parametrize(
    "name", ["model", "a/b/c", "/no/such/folder", "./missing", "org/", "", "-a/b", "a b/c"]
)
def test_anything_else_is_refused(name):
    with pytest.raises(ModelNotFoundError, match="name a directory, a hub id"):
        resolve_model(name)


def test_a_file_is_no_model(tmp_path, monkeypatch):
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "model").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError):
        resolve_model("org/model")


def test_testbed_names_resolve_to_what_is_shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "testbed_models", lambda: {"shapes": tmp_path})
    assert resolve_model("testbed:shapes") == str(tmp_path)
    with pytest.raises(
        ModelNotFoundError, match=r"unknown testbed model 'testbed:cubes'; available: testbed:shapes"
    ):
        resolve_model("testbed:cubes")
    monkeypatch.setattr(models, "testbed_models", dict)
    with pytest.raises(InputError, match="install noiseworks-bench"):
        resolve_model("testbed:shapes")


@pytest.mark.parametrize("shown", [True, False])
def test_loading_bars_are_off_inside_and_as_before_afterwards(shown, monkeypatch):
    from transformers.utils import logging

    monkeypatch.setattr(logging, "_tqdm_active", shown)
    with models.without_loading_bars():
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled() is shown


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "x" * 300 + "/y"])
def test_names_that_no_file_system_takes_are_refused(name):
    with pytest.raises(ModelNotFoundError, match="no model at"):
        resolve_model(name)
