"""The guide's example runs as it stands, and does what its page says."""

import re
from pathlib import Path

import torch
from noiseworks.kits import diffusers_hosts
from noiseworks.kits.diffusers_hosts import sample_generators, tiny_pipeline

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "denoiser-hook.md"


def test_the_example_runs_and_its_method_mixes_prompts(monkeypatch):
    text = PAGE.read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    pipe = tiny_pipeline("sd")
    monkeypatch.setattr(diffusers_hosts, "load_pipeline", lambda name: pipe, raising=False)
    names: dict = {}
    exec(compile(example, str(PAGE), "exec"), names)
    assert names["handle"].report["forwards"] == len(names["handle"].report["mean of x0"]) == 8
    assert names["image"].size == (32, 32)

    def draw(prompt):
        generator = sample_generators([0])
        return pipe(prompt, num_inference_steps=4, generator=generator, output_type="latent").images

    first, second = draw("a red circle"), draw("a blue square")
    with diffusers_hosts.attach_hook(names["StartWith"](pipe, ["a red circle"]), "start-with"):
        mixed, same = draw("a blue square"), draw("a red circle")
    assert torch.equal(same, first)
    assert not torch.equal(mixed, first)
    assert not torch.equal(mixed, second)


def test_every_name_of_the_page_exists():
    names = set(re.findall(r"`([a-z]\w+)\(", PAGE.read_text()))
    kit = {*diffusers_hosts.__all__, "mask_weights", "check_attach", "attach", "deepcopy", "detach"}
    assert names - kit <= {"begin_run", "denoise"}
    assert {"encode_condition", "with_condition", "forecast", "attach_hook"} <= names
