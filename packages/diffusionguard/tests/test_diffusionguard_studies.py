import importlib.util
import json
from pathlib import Path

FILE = Path(__file__).parents[1] / "studies/grain.py"


def test_the_study_of_grain_moves_latents_and_prints_a_line_an_arm(capsys):
    spec = importlib.util.spec_from_file_location("grain", FILE)
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    sizes = ["--images", "1", "--steps", "2", "--edit-steps", "1", "--gain", "50"]
    study.main([*sizes, "--arms", "random", "diffusionguard"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["arm"] for row in rows] == ["random", "diffusionguard"]
    assert all(row["grain"] > 0.01 and row["norm_ratio"] > 0 for row in rows)
