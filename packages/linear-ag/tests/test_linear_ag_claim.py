"""The claim's bookkeeping, without drawing anything."""

from types import SimpleNamespace

import torch
from noiseworks.linear_ag import claim


def test_a_batch_gives_one_wall_clock_value_and_a_prompt_one_of_each_other(monkeypatch):
    def draw_batch(pipe, policy, captions, seed, steps):
        count = len(captions)
        return torch.zeros(count, 4, 8, 8), torch.zeros(count, 3, 32, 32), [steps] * count

    plan = SimpleNamespace(policies={arm.name: None for arm in claim.ARMS})
    monkeypatch.setattr(claim, "load", lambda *key: None)
    monkeypatch.setattr(claim, "calibrated", lambda *key: plan)
    monkeypatch.setattr(claim, "_draw_batch", draw_batch)
    prompts, others = claim.BATCH + 3, claim.BATCH
    drawn = claim.draw_all(5, None, "cpu", (prompts, others, 1), lambda *step: None)
    for arm in claim.ARMS:
        main = arm.name in claim.MAIN
        assert len(drawn[arm.name].batch_seconds) == (2 if main else 1)
        assert len(drawn[arm.name].calls) == (prompts if main else others)
