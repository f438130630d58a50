"""What streaming-dp promises beside its equations."""

from functools import partial
from pathlib import Path
from typing import Any

from noiseworks.kits.contracts import Artifact, Contract, Resume

SMALL = {"down_dims": (8, 16), "kernel_size": 3, "step_embed_dim": 8, "num_train_timesteps": 15}


def policies() -> tuple[Any, Any]:
    """Return a small ordinary policy and its conversion."""
    import torch
    from noiseworks.kits.policies import NativePolicy, PolicyConfig
    from noiseworks.streaming_dp import convert

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        host = NativePolicy(PolicyConfig(**SMALL))
    return host, convert(host, n_action_steps=1)


def files(folder: Path) -> dict[str, Path]:
    """Make an ordinary policy, its conversion and episodes."""
    import numpy as np
    import torch
    from noiseworks.core.artifacts import save_artifact
    from noiseworks.kits.policies import Episodes
    from noiseworks.streaming_dp.hosts import NETWORK_KIND

    for name, host in zip(("ordinary", "streaming"), policies(), strict=True):
        host.save_pretrained(folder / name)
    rng = np.random.default_rng(0)
    obs, actions = (rng.normal(size=(60, width)).astype(np.float32) for width in (33, 3))
    Episodes(obs, actions, np.array([30, 60]), np.zeros(2, np.int64)).save(folder / "data.npz")
    (folder / "lerobot").mkdir()
    (folder / "lerobot" / "config.json").write_text('{"type": "diffusion"}')
    save_artifact(folder / "tuned", NETWORK_KIND, {"n_action_steps": 1}, {"w": torch.zeros(1)})
    return {name: folder / name for name in ("ordinary", "streaming", "data.npz", "lerobot", "tuned")}


def trained(folder: Path, stop_after: int | None, edm: bool = False) -> dict[str, Any]:
    """Train a conversion, or a new EDM policy, for six steps, or stop it earlier; return its averaged weights."""
    import torch
    from noiseworks.kits.policies import PolicyConfig
    from noiseworks.kits.training.testing import stopping
    from noiseworks.streaming_dp import StreamingHost, TrainConfig, train

    generator = torch.Generator().manual_seed(0)
    table = {
        "obs": torch.rand(20, 2, 33, generator=generator),
        "action": torch.rand(20, 16, 3, generator=generator),
    }
    host = policies()[1]
    if edm:
        host = StreamingHost(PolicyConfig(**SMALL, n_action_steps=1), host.net, edm={})
    config = TrainConfig(
        max_steps=6, batch_size=8, warmup_steps=2, device="cpu", checkpoint_every=0, weights=(0.25,) * 4
    )
    with stopping(stop_after):
        train(host, table, folder, config, progress=False)
        return StreamingHost.from_pretrained(folder / "model").net.state_dict()
    return {}


MODEL = "--model {streaming}"
EVAL = f"eval {MODEL} --device cpu --tasks 8 --episodes 1"
TRAIN = "train --out run --data {data.npz} --batch-size 8 --device cpu"
CONTRACT = Contract(
    files=files,
    good={
        "levels --horizon 16 --n-obs-steps 2 --n-action-steps 1": (),
        "convert --model {ordinary} --out converted": ("converted/*",),
        "lerobot --model {lerobot} --weights {tuned} --out stream --solver ddim": (
            "stream/model.safetensors",
        ),
        f"{TRAIN} --model {{ordinary}} --max-steps 1 --half": ("run/model/*", "run/metrics.csv"),
        f"{TRAIN} --max-steps 1 --horizon 8 --schedule edm": ("run/model/*",),
        f"{EVAL} --solver ddim --buffer-init constant --constant 0 --constant 0 --constant -1 "
        "--video stream.webp": ("stream.webp",),
        f"compare {MODEL} --host {{ordinary}} --tasks 8 --episodes 1 --replans 1 --device cpu": (),
    },
    bad=[
        ("levels --horizon 3 --n-action-steps 4", "horizon"),
        ("levels --num-levels 5", "15 chunks"),
        ("levels --num-levels 2.5", "2.5"),
        ("convert --model gone --out out", "gone"),
        ("convert --model {ordinary} --out {ordinary}", "replace its source"),
        ("lerobot --model {lerobot} --weights {ordinary} --out stream", "streaming-dp/network"),
        ("lerobot --model {ordinary} --weights {tuned} --out stream", "type diffusion"),
        ("eval --model {ordinary}", "streaming-dp/policy"),
        (f"eval {MODEL} --video film.gif", "webp"),
        (f"eval {MODEL} --tasks 12", "12"),
        (f"eval {MODEL} --env moon", "moon"),
        (f"eval {MODEL} --buffer-init constant", "constant"),
        ("train --out out --data testbed:pusht", "no demonstrations"),
        ("train --out out --weights 0.5 0 0 0", "sum to 1"),
        ("train --out out --data gone.npz", "gone.npz"),
        (f"{TRAIN} --max-steps 0", "max_steps"),
        (f"{TRAIN} --model {{ordinary}} --schedule edm", "schedule"),
        (f"eval {MODEL} --churn 5", "churn"),
        ("train --out run --data {data.npz} --batch-size 800 --device cpu", "800"),
        (f"compare {MODEL} --replans 0", "replans"),
        (f"compare {MODEL} --host gone", "gone"),
    ],
    artifacts={
        "policy": Artifact(
            lambda path: policies()[1].save_pretrained(path),
            lambda path: load(path).net.state_dict(),
        )
    },
    resume={"train": Resume(trained, 3), "edm": Resume(partial(trained, edm=True), 3)},
)


def load(path: Path) -> Any:
    """Read a streaming policy."""
    from noiseworks.streaming_dp import StreamingHost

    return StreamingHost.from_pretrained(path)
