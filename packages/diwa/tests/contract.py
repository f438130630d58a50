"""What diwa promises beside its equations."""

from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Artifact, Contract, Resume


def model() -> Any:
    """Make a tiny world model of the maze."""
    import torch
    from noiseworks.diwa import WorldModel
    from noiseworks.diwa.options import ModelSizes

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return WorldModel(4, 2, ModelSizes(8, 2, 3, 8)).eval().requires_grad_(False)


def policy() -> Any:
    """Make a tiny policy on its features."""
    import torch
    from noiseworks.diwa import ChainPolicy
    from noiseworks.diwa.options import PolicySizes

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return ChainPolicy(14, 2, PolicySizes(2, 4, 8, 1, 4)).eval().requires_grad_(False)


def classifier() -> Any:
    """Make a tiny classifier of its features."""
    import torch
    from noiseworks.diwa import SuccessClassifier

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return SuccessClassifier(14, 8).eval().requires_grad_(False)


def demonstrations() -> Any:
    """Record demonstrations, of which some succeed."""
    from noiseworks.bench.testbeds.maze import record

    return record("umaze", "expert", 120, max_steps=30)


def files(folder: Path) -> dict[str, Path]:
    """Make models, and folders that a user could name by mistake."""
    from noiseworks.kits.rl.testing import mistaken_data

    model().save_pretrained(folder / "model")
    policy().save_pretrained(folder / "policy")
    classifier().save_pretrained(folder / "judge")
    (folder / "empty").mkdir()
    (folder / "taken.txt").write_text("mine")
    made = {name: folder / name for name in ("model", "policy", "judge", "empty", "taken.txt")}
    return made | mistaken_data(folder)


def saved(make: Any) -> Artifact:
    """Return an artifact of what a function makes."""
    return Artifact(
        lambda path: make().save_pretrained(path),
        lambda path: type(make()).from_pretrained(path).state_dict(),
    )


def modelled(folder: Path, stop_after: int | None) -> Any:
    """Train a world model for four steps, or stop before."""
    from noiseworks.diwa import fit_model
    from noiseworks.diwa.options import ModelFit
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping

    options = ModelFit(max_steps=4, batch_size=4, length=4, device="cpu", checkpoint_every=0)
    with open_run(folder, {"fit": options}) as run, stopping(stop_after):
        return fit_model(demonstrations(), model().sizes, options, run).state_dict()


def imitated(folder: Path, stop_after: int | None) -> Any:
    """Imitate for four steps, or stop before."""
    from noiseworks.diwa import featurise, fit_policy
    from noiseworks.diwa.options import PolicyFit
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping

    options = PolicyFit(max_steps=4, batch_size=4, device="cpu", checkpoint_every=0)
    with open_run(folder, {"fit": options}) as run, stopping(stop_after):
        return fit_policy(featurise(model(), demonstrations()), policy().sizes, options, run).state_dict()


def tuned(folder: Path, stop_after: int | None) -> Any:
    """Tune for four rounds, or stop before."""
    from noiseworks.diwa import WorldDream, featurise, tune
    from noiseworks.diwa.options import Dreaming, Tuning
    from noiseworks.diwa.training import starts_of
    from noiseworks.kits.training import open_run
    from noiseworks.kits.training.testing import stopping

    options = Tuning(4, 3, tuned_steps=2, epochs=2, critic_first=1, device="cpu", checkpoint_every=0)
    dream = WorldDream(model(), classifier(), starts_of(featurise(model(), demonstrations())), 3)
    with open_run(folder, {"fit": options}) as run, stopping(stop_after):
        made, loop = tune(policy(), dream, Dreaming(3, 3, 4), options, run, progress=False)
        return made.state_dict() | {"steps": loop.stepper.steps, "scale": loop.scale.mean}


PLAY = "--data maze:umaze-navigate --record-steps 200 --record-limit 20"
DEMOS = "--data maze:umaze-expert --record-steps 120 --record-limit 30"
SMALL = "--max-steps 2 --batch-size 4 --device cpu"
TINY = "--deter 8 --groups 2 --classes 3 --width 8 --length 4"
CHAIN = "--chunk 2 --denoising-steps 4 --policy-width 8 --policy-layers 1 --time-dim 4"
DREAM = "--envs 2 --decisions 2 --limit 4 --tuned-steps 2 --epochs 1"
CONTRACT = Contract(
    files=files,
    good={
        f"fit {PLAY} {TINY} {SMALL} --out run": ("run/model/model.safetensors",),
        f"imitate --model {{model}} {DEMOS} {CHAIN} {SMALL} --out run": ("run/policy/model.safetensors",),
        f"reward --model {{model}} {DEMOS} --epochs 1 --reward-width 8 --out judge": (
            "judge/model.safetensors",
        ),
        f"train --policy {{policy}} --model {{model}} --classifier {{judge}} {DEMOS} {DREAM} {SMALL} --out run": (
            "run/policy/model.safetensors",
        ),
        "eval --model {model} --policy {policy} --env maze:umaze --episode-steps 6 --episodes 2 --paths paths.png": (
            "paths.png",
        ),
    },
    bad=[
        (f"fit {PLAY} {TINY} --out {{taken.txt}}/run", "taken.txt"),
        (f"fit {PLAY} --length 30 --out run", "no window"),
        (f"fit --data nowhere {TINY} --out run", "nowhere"),
        (f"fit --data {{endless}} {TINY} --out run", "lacks terminals"),
        ("imitate --model {model} --data {endless} --out run", "lacks terminals"),
        ("imitate --model {model} --data {narrow} --out run", "3 observations"),
        ("reward --model {model} --data {narrow} --out judge", "3 observations"),
        (f"imitate --model {{empty}} {DEMOS} --out run", "empty"),
        (f"imitate --model {{policy}} {DEMOS} --out run", "diwa/world-model"),
        ("reward --model {model} --data maze:umaze-random --record-steps 10 --out judge", "no success"),
        (
            f"train --policy {{policy}} --model {{model}} --classifier {{judge}} {DEMOS} --limit 5 --out run",
            "multiple of the policy's chunk",
        ),
        (
            f"train --policy {{policy}} --model {{model}} --classifier {{judge}} {DEMOS} --tuned-steps 5 "
            f"{SMALL} --out run",
            "5",
        ),
        ("eval --model {model} --policy {policy} --env gym:Pendulum-v1", "(3,)"),
        ("eval --model {model} --policy {policy} --env umaze", "maze:<layout>"),
    ],
    artifacts={"world model": saved(model), "policy": saved(policy), "classifier": saved(classifier)},
    resume={"fit": Resume(modelled, 2), "imitate": Resume(imitated, 2), "train": Resume(tuned, 2)},
)
