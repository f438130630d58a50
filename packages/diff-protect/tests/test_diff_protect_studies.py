import importlib.util
import json
from pathlib import Path

FILE = Path(__file__).parents[1] / "studies/transfer.py"


def test_the_study_of_transfer_keeps_what_it_protected_and_prints_a_line_a_method(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("protect_transfer", FILE)
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    sizes = ["--images", "1", "--steps", "1", "--edit-steps", "1", "--methods", "random", "sds-"]
    study.main([*sizes, "--keep", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["random-1-1-100.npz", "sds--1-1-100.npz"]
    study.main([*sizes, "--photographs"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row.get("defence") for row in rows] == ["random", "sds-"] * 2 + [None, None]
    assert len({row["editor"] for row in rows[:4]}) == 2
    assert all(row["latent_shift"] > 0 and row["unknown_shift"] > 0 for row in rows[4:])
