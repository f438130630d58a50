"""What bac promises beside its equations."""

from functools import cache
from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Artifact, Contract

K = 10


@cache
def made() -> tuple[Any, Any, Any]:
    """Return an untrained policy, a profile of it and a plan."""
    import torch
    from noiseworks.bac import Schedule, make_plan, profile
    from noiseworks.kits.policies import NativePolicy, PolicyConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = PolicyConfig(network="transformer", n_layer=2, n_head=2, n_emb=16, num_train_timesteps=K)
        policy = NativePolicy(config).eval()
    obs = {"obs": torch.randn(2, 2, 33, generator=torch.Generator().manual_seed(0))}
    found = profile(policy, obs, metrics=("cosine", "l1"), generator=torch.Generator().manual_seed(0))
    return policy, found, make_plan(found, Schedule(updates=3, bubble=1))


def files(folder: Path) -> dict[str, Path]:
    """Make policies, observations, a profile and a plan."""
    import numpy as np
    from noiseworks.kits.policies import NativePolicy, PolicyConfig

    policy, found, plan = made()
    policy.save_pretrained(folder / "policy")
    NativePolicy(PolicyConfig(down_dims=(8, 16), num_train_timesteps=K)).save_pretrained(folder / "unet")
    found.save_pretrained(folder / "profile")
    plan.save_pretrained(folder / "plan")
    np.savez(folder / "obs.npz", obs=np.random.default_rng(0).normal(size=(4, 2, 33)).astype(np.float32))
    return {name: folder / name for name in ("policy", "unet", "profile", "plan", "obs.npz")}


def saved(index: int):
    """Return what writes a profile (1) or a plan (2)."""
    return lambda folder: made()[index].save_pretrained(folder)


def profile_of(folder: Path) -> dict[str, Any]:
    """Read a profile back."""
    from noiseworks.bac import FeatureProfile

    found = FeatureProfile.from_pretrained(folder)
    return {"blocks": found.blocks, "times": found.times, "volatility": found.volatility, **found.matrices}


def plan_of(folder: Path) -> dict[str, Any]:
    """Read a plan back."""
    from noiseworks.bac import CachePlan

    return vars(CachePlan.from_pretrained(folder))


MODEL, DATA = "--model {policy} --device cpu", "--data {obs.npz} --observations 2"
PROFILE, COMPARE = f"profile {MODEL} --out out {DATA}", f"compare {MODEL} --profile {{profile}} {DATA}"
PLAN = "plan --profile {profile} --out out --updates 3 --bubble 1"
CONTRACT = Contract(
    files=files,
    good={
        f"{PROFILE} --metrics cosine,l1 --solver ddim --steps 5": ("out/config.json", "out/*.safetensors"),
        f"{PLAN} {MODEL} {DATA}": ("out/config.json", "out/*.safetensors"),
        f"{PLAN} --method unified --metric l1 --no-force-last": ("out/*",),
        f"{PLAN} --method uniform": ("out/*",),
        "plan --profile {profile} --updates 3 --bubble 0 --method block --moved-to 5": (),
        "heatmap {plan} --out plan.svg": ("plan.svg",),
        "heatmap {profile} --out profile.png": ("profile.png",),
        "heatmap {profile} --metric l1 --out profile.webp": ("profile.webp",),
        f"errors {MODEL} --plan {{plan}} {DATA} --out errors.svg": ("errors.svg",),
        f"eval {MODEL} --plan {{plan}} --tasks 11 --episodes 1 --video film.webp": ("film.webp",),
        f"eval {MODEL} --plan {{plan}} --tasks 11 --episodes 1 --dataset rollouts": (
            "rollouts/meta/info.json",
        ),
        f"compare {MODEL} --profile {{profile}} {DATA} --updates 3 --bubble 1 --repeats 1": (),
    },
    bad=[
        (f"{PROFILE} --metrics dot", "metrics"),
        ("profile --model {policy} --out out --device warp", "warp"),
        ("profile --model {unet} --out out --data {obs.npz}", "U-Net"),
        ("profile --model nowhere --out out", "nowhere"),
        (f"profile {MODEL} --out out --data missing.npz", "missing.npz"),
        (f"profile {MODEL} --out out --data {{obs.npz}}", "fewer than"),
        (f"profile {MODEL} --out {{policy}} {DATA}", "source"),
        ("plan --profile {profile} --updates 11 --method block", "updates"),
        ("plan --profile {profile} --updates 3 --bubble 7 --method block", "bubble"),
        (PLAN, "--model"),
        ("plan --profile {plan} --out out --method block", "kind"),
        (f"{PLAN} --method block --metric mse", "mse"),
        ("heatmap {plan} --out plan.gif", "svg"),
        (f"errors {MODEL} --plan {{plan}} --out errors.txt", "svg"),
        (f"eval {MODEL} --video film.mp4", "webp"),
        (f"eval {MODEL} --tasks 12", "tasks"),
        (f"eval {MODEL} --dataset {{plan}}", "is not replaced"),
        (f"{COMPARE} --batch-size 3", "batch_size"),
    ],
    artifacts={"profile": Artifact(saved(1), profile_of), "plan": Artifact(saved(2), plan_of)},
)
