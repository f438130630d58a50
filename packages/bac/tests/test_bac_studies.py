import importlib.util
from dataclasses import replace
from pathlib import Path

FILE = Path(__file__).parents[1] / "studies/depth.py"


def test_the_study_of_depth_prints_the_errors_of_every_plan(tmp_path, capsys, monkeypatch):
    spec = importlib.util.spec_from_file_location("bac_depth", FILE)
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    small = replace(study.recipes.TRANSFORMER, n_emb=16, n_head=2, num_train_timesteps=10)
    monkeypatch.setattr(study.recipes, "TRANSFORMER", small)
    words = [
        "--layers",
        "1",
        "2",
        "--steps",
        "2",
        "--demonstrations",
        "16",
        "--updates",
        "3",
        "--bubble",
        "1",
    ]
    study.main([*words, "--device", "cpu", "--out", str(tmp_path)])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "actions" in line]
    assert [row[0] for row in rows] == [*study.PLANS, *study.PLANS]
    assert not any("nan" in row for row in rows)
