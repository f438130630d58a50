"""What find promises beside its equations."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Artifact, Contract, Resume

ROLLOUT = "--num-inference-steps 2 --guidance-scale 2"
FIT = (
    f"fit --model {{model}} --prompt 'a red circle' --reward brightness {ROLLOUT} --device cpu --max-steps 2"
)
LEARNED = f"--model {{model}} --noise {{noise}} {ROLLOUT} --device cpu"


def files(folder: Path) -> dict[str, Path]:
    """Make a tiny pipeline, one that cannot be drawn from, distributions that fit and that do not, and prompts."""
    from noiseworks.find import NoisePolicy
    from noiseworks.kits.diffusers_hosts import tiny_pipeline

    tiny_pipeline("sd").save_pretrained(folder / "model")
    tiny_pipeline("dit").save_pretrained(folder / "dit")
    NoisePolicy((4, 8, 8)).save_pretrained(folder / "noise", "a red circle")
    NoisePolicy((4, 4, 4)).save_pretrained(folder / "small", "a red circle")
    (folder / "two.txt").write_text("a red circle\na blue square\n")
    (folder / "full").mkdir()
    (folder / "full" / "thesis.tex").write_text("x")
    return {name: folder / name for name in ("model", "dit", "noise", "small", "two.txt", "full")}


def resumed(folder: Path, stop_after: int | None) -> Mapping[str, Any]:
    """Fit six iterations, or stop before the end."""
    import torch
    from noiseworks.find import FIND, Fitting, Objective
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping

    options = Fitting(max_steps=6, batch_size=4, device="cpu", checkpoint_every=0)
    objective = Objective(replay=2, antithetic=True, cells=2)
    worth = lambda z, seeds: z.flatten(1).mean(1) + torch.tensor([s % 7 for s in seeds]) / 7  # noqa: E731
    found = FIND(worth, (2, 4, 4), torch.ones(3), options, objective)
    with open_run(folder, {"options": options}) as run, stopping(stop_after):
        found.fit(run, progress=False)
    return {
        "policy": found.policy.state_dict(),
        "calibrator": found.calibrator.state_dict(),
        "r": found.rewards,
    }


def saved(folder: Path) -> None:
    """Write a distribution that is not the initial one."""
    import torch
    from noiseworks.find import NoisePolicy

    policy = NoisePolicy((2, 4, 4), cells=2)
    torch.nn.init.uniform_(policy.own_mean)
    policy.save_pretrained(folder, "a red circle")


def loaded(folder: Path) -> Mapping[str, Any]:
    """Read it back."""
    from noiseworks.find import NoisePolicy

    policy, prompt = NoisePolicy.from_pretrained(folder)
    return {"prompt": prompt, "state": policy.state_dict(), "z": policy.sample([3]).detach()}


CONTRACT = Contract(
    files=files,
    good={
        f"{FIT} --out run": ("run/noise/model.safetensors", "run/metrics.csv"),
        f"{FIT} --surrogate ppo --penalty kl --cells 2 --antithetic --replay 1 --positive --out run": (
            "run/noise/config.json",
        ),
        f"generate {LEARNED} --count 2 --out out": ("out/0001.png", "out/images.json"),
        f"eval {LEARNED} --reward brightness --count 2": (),
        f"compare {FIT.removeprefix('fit ')} --count 2 --out out": ("out/images.png", "out/comparison.json"),
    },
    bad=[
        (f"{FIT} --clip 0 --out run", "clip"),
        (f"{FIT} --batch-size 0 --out run", "batch_size"),
        (f"{FIT} --batch-size 3 --antithetic --out run", "even"),
        (f"{FIT} --cells 3 --out run", "cells"),
        (f"{FIT} --replay 2 --ratio-reference initial --out run", "replay"),
        (f"{FIT} --devices 2 --out run", "devices"),
        (f"{FIT} --out {{full}}", "thesis.tex"),
        (FIT.replace("brightness", "beauty") + " --out run", "unknown reward"),
        (FIT.replace("brightness", "math:beauty") + " --out run", "math:beauty"),
        (FIT.replace("'a red circle'", "' '") + " --out run", "prompt"),
        (FIT.replace("'a red circle'", "{two.txt}") + " --out run", "2 prompts"),
        (FIT.replace("{model}", "{dit}") + " --out run", "dit"),
        (f"generate {LEARNED} --count 0 --out out", "count"),
        (f"generate {LEARNED} --out {{noise}}", "source"),
        (f"generate {LEARNED.replace('{noise}', '{small}')} --out out", "fit it anew"),
        (f"eval {LEARNED.replace('{noise}', '{full}')}", "full"),
        (f"eval {LEARNED} --reward brightness --count 1", "count"),
    ],
    artifacts={"noise": Artifact(saved, loaded)},
    resume={"fit": Resume(resumed, 3)},
)
