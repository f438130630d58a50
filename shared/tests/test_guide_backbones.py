"""The guide's example runs as it stands, and its page names what exists."""

import re
from pathlib import Path

import torch
from noiseworks.kits import backbones
from noiseworks.kits.training import read_settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "backbones-kit.md"


def test_the_example_runs(monkeypatch, tmp_path):
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    with torch.random.fork_rng(devices=[]):
        exec(compile(example, str(PAGE), "exec"), names)
    assert max(names["accuracy"].values()) > 0.3  # of ten classes
    assert read_settings(tmp_path / "fill-in")["fit"]["max_steps"] == 30


def test_every_name_of_the_page_exists():
    words = set(re.findall(r"`([A-Za-z_]+)`", PAGE.read_text()))
    known = {*backbones.__all__, "seed", "unused_parameters"}
    assert {"fit_loss", "random_masks", "around_blocks", "ridge_probe"} <= words
    assert words <= known
