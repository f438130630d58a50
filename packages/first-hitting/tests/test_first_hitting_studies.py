"""The study runs, at a tiny size."""

import importlib.util
import json
from pathlib import Path

STUDIES = Path(__file__).parents[1] / "studies"


def test_categorical_study_compares_all_four_forms(capsys):
    spec = importlib.util.spec_from_file_location("categorical_study", STUDIES / "categorical.py")
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    sizes = {"rows": 2, "vocabulary": 64, "length": 8, "steps": 8, "small": 32, "tiny": 32, "turns": 1}
    study.main([word for name, value in sizes.items() for word in (f"--{name}", str(value))])
    found = json.loads(capsys.readouterr().out)
    assert {name for name in found if isinstance(found[name], dict)} == {"draws", "ancestral", "head", "loop"}
    assert found["loop"]["times faster"]["first-hitting"] > 0
