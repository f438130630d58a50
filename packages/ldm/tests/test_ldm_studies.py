"""The study runs, at a tiny size."""

import importlib.util
import json
from pathlib import Path

STUDIES = Path(__file__).parents[1] / "studies"


def test_both_forms_of_the_adaptive_weight_give_the_same_gradients(capsys):
    spec = importlib.util.spec_from_file_location("adaptive_weight_study", STUDIES / "adaptive_weight.py")
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    study.main(["--side", "32", "--width", "8", "--batch", "2", "--steps", "1", "--disc-width", "8"])
    found = json.loads(capsys.readouterr().out)
    assert found["ratio"].keys() == {"autoencoder", "with discriminator"}
    assert found["largest_relative_gradient_difference"] < 1e-4
