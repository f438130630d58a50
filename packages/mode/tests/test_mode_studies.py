import importlib.util
from pathlib import Path

FILE = Path(__file__).parents[1] / "studies/expert_caching.py"


def test_the_study_of_expert_caching_times_every_kind(capsys):
    spec = importlib.util.spec_from_file_location("mode_expert_caching", FILE)
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    study.main(["--width", "32", "--layers", "1", "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:25].strip() for line in lines] == ["routed", "dense, same active width", "merged", "bmm"]
    assert lines[0].endswith("1.00 of routed")
