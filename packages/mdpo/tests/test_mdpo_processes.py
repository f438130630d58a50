"""Two processes on a CPU (DDP, gloo) do what one process does with as many prompts a round."""

import sys

import pytest
import torch
from noiseworks.mdpo import MDPOConfig, MDPOTrainer, RolloutDecoding

ROWS = [{"prompt": f"{i}+{j}=", "answer": "ab"} for i in range(4) for j in (3, 12)]
SETTINGS = {
    "num_generations": 4,
    "sample_train_steps": 2,
    "learning_rate": 1e-2,
    "micro_batch_prompts": 2,
    "device": "cpu",
    "precision": "64-true",  # sums of another order differ by 1e-16, which Adam cannot blow up
}
OBJECTIVES = ("mdpo", "diffu_grpo", "sft")


def some_zeros(prompts, completions, **columns):
    return [text.count("0") / 8 for text in completions]


def train(model, tokenizer, objective, **changes):
    """Two rounds; returns their figures and the trained weights."""
    settings = SETTINGS | {"objective": objective, "batch_size": 4} | changes
    config = MDPOConfig(decoding=RolloutDecoding(8, 4, 4, 1.0, remask="rcr"), **settings)
    trainer = MDPOTrainer(model, tokenizer, [some_zeros], config, ROWS)
    figures = [trainer.round(step) for step in range(2)]
    parts = [p.detach().flatten() for p in trainer.policy.trainable().values()]
    return figures, torch.cat(parts), trainer.fabric.global_rank


def main(folder):
    """Train as one of two processes."""
    from noiseworks.kits.masked_lm import load_host

    for objective in OBJECTIVES:
        model, tokenizer, _ = load_host(folder, dtype=torch.float64)
        figures, weights, rank = train(model, tokenizer, objective, devices=2, strategy="ddp")
        torch.save({"figures": figures, "weights": weights}, f"{folder}/{objective}-{rank}.pt")


@pytest.mark.slow
def test_two_processes_train_as_one(make_host, tokenizer, tmp_path, warm):
    make_host().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for done in warm.ranks("python", __file__, tmp_path, cwd=tmp_path):
        assert done.returncode == 0, done.stderr[-4000:]
    for objective in OBJECTIVES:
        figures, expected, _ = train(make_host().double(), tokenizer, objective)
        found = [torch.load(tmp_path / f"{objective}-{rank}.pt", weights_only=True) for rank in (0, 1)]
        assert torch.equal(found[0]["weights"], found[1]["weights"])
        torch.testing.assert_close(found[0]["weights"], expected, atol=1e-6, rtol=1e-6)
        start = torch.cat([p.detach().double().flatten() for p in make_host().parameters()])
        assert (expected - start).abs().max() > 1e-2, "nothing was trained"
        for update, one in enumerate(figures):
            for name in ("reward", "loss"):
                if objective != "sft" or name == "loss":
                    mean = sum(part["figures"][update][name] for part in found) / 2
                    assert mean == pytest.approx(one[name], rel=1e-5), (objective, name)


if __name__ == "__main__":
    main(sys.argv[1])
