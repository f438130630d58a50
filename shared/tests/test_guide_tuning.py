"""The guide's example runs as it stands, and its page names what exists."""

import re
from pathlib import Path

from noiseworks.kits import diffusers_hosts, image_tuning
from noiseworks.kits.diffusers_hosts import tiny_pipeline
from noiseworks.kits.image_tuning import choices

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "tuning.md"


def test_the_example_runs(monkeypatch):
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.setattr(diffusers_hosts, "load_pipeline", lambda name: tiny_pipeline("sd"), raising=False)
    names: dict = {}
    exec(compile(example, str(PAGE), "exec"), names)
    assert names["tuner"].done == 1
    assert names["tuner"].queries == 4
    assert names["before"].size == (32, 32)


def test_every_name_of_the_page_exists():
    words = set(re.findall(r"`([A-Za-z_]+)(?:\([^`]*\))?`", PAGE.read_text()))
    known = {*image_tuning.__all__, *dir(image_tuning.DiffusionDPO), *choices.KEYS}
    assert {"roll_out", "optimise", "reference_log_probs", "dominance", "DenoisingError"} <= words
    assert words - known <= {"lora", "starts", "clip_sample", "places"}
