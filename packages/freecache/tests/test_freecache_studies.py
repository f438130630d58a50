"""The study runs, at a tiny size."""

import importlib.util
import json
from pathlib import Path

STUDIES = Path(__file__).parents[1] / "studies"


def test_cached_decoding_compares_rows_and_seconds(capsys):
    spec = importlib.util.spec_from_file_location("cached_decoding", STUDIES / "cached_decoding.py")
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    study.main(
        ["--prompts", "32", "--answer", "8", "--block", "4", "--width", "32", "--layers", "1", "--turns", "1"]
    )
    found = json.loads(capsys.readouterr().out)["found"]["32"]
    assert set(found) == {"full", "lazy", "stale", "eager"}
    # 40 rows at first and 3 x 8 + 4 x 4 later, against 40 a step.
    assert found["stale"]["row ratio"] == 8 * 40 / (40 + 3 * 8 + 4 * 4)
