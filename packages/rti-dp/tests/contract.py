"""What rti-dp promises beside its equations."""

from pathlib import Path

from noiseworks.kits.contracts import Contract

SMALL = {"down_dims": (8, 16), "kernel_size": 3, "step_embed_dim": 8}
SHORT = {"network": "transformer", "n_layer": 1, "n_head": 1, "n_emb": 8, "num_train_timesteps": 10}


def files(folder: Path) -> dict[str, Path]:
    """Make a policy, one of few steps, one whose weights are broken, episodes and a dataset."""
    import numpy as np
    import torch
    from noiseworks.kits.policies import Episodes, NativePolicy, PolicyConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = NativePolicy(PolicyConfig(**SMALL))
        NativePolicy(PolicyConfig(**SHORT)).save_pretrained(folder / "short")
    policy.save_pretrained(folder / "policy")
    torch.nn.init.constant_(policy.net.final_conv[1].bias, float("nan"))
    policy.save_pretrained(folder / "broken")
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(8, 33)), rng.choice([-1.0, 1.0], size=(8, 3))
    obs, actions = (array.astype(np.float32) for array in arrays)
    Episodes(obs, actions, np.array([4, 8]), np.zeros(2, np.int64)).save(folder / "data.npz")
    (folder / "lerobot").mkdir()
    (folder / "lerobot" / "config.json").write_text('{"type": "diffusion"}')
    return {name: folder / name for name in ("policy", "short", "broken", "data.npz", "lerobot")}


MODEL = "--model {policy}"
EVAL = f"eval {MODEL} --device cpu --tasks 0 --episodes 1"
CONTRACT = Contract(
    files=files,
    good={
        f"{EVAL} --steps 3,1,0 --discrete 2:clip:10 --initial-steps 5 "
        "--video film.webp --record episodes.npz": ("film.webp", "episodes.npz"),
        "compare --model {short} --steps 3,1,0 --tasks 0 --episodes 1 --replans 1 --latency 1 --device cpu "
        "--video arms.webp": ("arms.webp",),
        f"suggest {MODEL} --data {{data.npz}} --nfe 3 --pairs 2 --discrete 2:clip": (),
        "lerobot --model {lerobot} --out warm --steps 5,2,0": ("warm/config.json",),
        "scale-data {data.npz} scaled.npz --dims -1 --factor 5": ("scaled.npz",),
    },
    bad=[
        ("eval --model gone", "gone"),
        (f"eval {MODEL} --steps 1,2,0", "decrease"),
        (f"eval {MODEL} --steps 3,x", "3,x"),
        (f"eval {MODEL} --steps 100,0", "99"),
        (f"eval {MODEL} --steps lift:clip:sound", "lowdim"),
        (f"eval {MODEL} --discrete 5:clip:10", "0 to 2"),
        (f"eval {MODEL} --discrete 2:clip:0", "factor"),
        (f"eval {MODEL} --env moon", "moon"),
        (f"eval {MODEL} --tasks 12", "12"),
        (f"eval {MODEL} --episodes 0", "episodes"),
        (f"eval {MODEL} --latency 9", "latency"),
        (f"eval {MODEL} --device abacus", "abacus"),
        (f"eval {MODEL} --video film.gif", "film.gif"),
        (f"eval {MODEL} --record {{policy}}", "folder"),
        (f"eval {MODEL} --env pusht --latency 1", "latency"),
        (f"suggest {MODEL} --data gone.npz", "gone.npz"),
        ("suggest --model {broken} --data {data.npz}", "holds NaN"),
        (f"suggest {MODEL} --data testbed:pusht", "no demonstrations"),
        ("lerobot --model {policy} --out warm", "type diffusion"),
        ("lerobot --model {lerobot} --out {lerobot}", "source"),
        ("scale-data gone.npz out.npz --dims 2", "gone.npz"),
        ("scale-data {data.npz} out.npz --dims 2 --factor 0", "factor"),
        ("scale-data {data.npz} out.npz --dims 0,1x", "1x"),
        (f"compare {MODEL} --replans 0", "replans"),
    ],
)
