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


def test_the_study_of_transfer_uses_protected_pictures_again(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("guard_transfer", FILE.with_name("transfer.py"))
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    sizes = ["--images", "1", "--steps", "1", "--edit-steps", "1", "--keep", str(tmp_path)]
    study.main([*sizes, "--defences", "random", "diffusionguard"])
    first = capsys.readouterr().out
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    study.main([*sizes, "--defences", "random", "diffusionguard"])
    assert capsys.readouterr().out == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == kept
    rows = [json.loads(line) for line in first.splitlines()]
    assert [row["defence"] for row in rows] == ["random", "diffusionguard"] * 2
    assert len({row["editor"] for row in rows}) == 2
