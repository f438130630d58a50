"""Time real-time iteration by LeRobot's own evaluation command, `lerobot-eval` on Push-T.

    python packages/rti-dp/studies/lerobot_eval.py --episodes 2 --steps 75,30,0

Needs the extra [lerobot], `lerobot[evaluation]` and gym-pusht. The policy is LeRobot's `DiffusionPolicy` with drawn
weights, or a directory of yours; drawn weights solve nothing and cost what trained ones cost. Three runs of the command
see the same episodes: the policy as it is, in chunks of eight actions; the same with a new plan for every action; and
the directory that `noiseworks-rti-dp lerobot` writes, which also plans for every action. Seconds an episode are
those of `eval_info.json`, simulation included.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.diffusion.modeling_diffusion import DiffusionConfig, DiffusionPolicy
from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors
from lerobot.scripts.lerobot_eval import eval_main
from noiseworks.core.cli import run
from noiseworks.rti_dp.cli import app

SIZES = {"observation.state": 2, "observation.environment_state": 16}
PLUGIN = "--discover_packages_path=noiseworks.rti_dp.lerobot"


def drawn_policy(folder: Path, widths: tuple[int, ...]) -> Path:
    """Write a policy of drawn weights with its processors and return its folder."""
    kinds = {"observation.state": FeatureType.STATE, "observation.environment_state": FeatureType.ENV}
    config = DiffusionConfig(
        down_dims=widths,
        input_features={name: PolicyFeature(kinds[name], (size,)) for name, size in SIZES.items()},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        device="cpu",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        DiffusionPolicy(config).save_pretrained(folder)
    pixels = {name: torch.full((size,), 512.0) for name, size in {**SIZES, "action": 2}.items()}
    stats = {name: {"min": torch.zeros_like(high), "max": high} for name, high in pixels.items()}
    for processor in make_diffusion_pre_post_processors(config, stats):
        processor.save_pretrained(folder)
    return folder


def evaluated(folder: Path, out: Path, episodes: int, *words: str) -> dict[str, float]:
    """Return what `lerobot-eval` says of a policy's folder over all episodes."""
    sys.argv = [
        "lerobot-eval",
        f"--policy.path={folder}",
        "--policy.device=cpu",
        "--env.type=pusht",
        "--env.obs_type=environment_state_agent_pos",
        f"--eval.n_episodes={episodes}",
        "--eval.batch_size=1",
        "--seed=1",
        f"--output_dir={out}",
        *words,
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        eval_main()
    return json.loads((out / "eval_info.json").read_text())["overall"]


def main() -> None:
    """Print seconds an episode and their ratios as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--model", type=Path, help="a LeRobot diffusion policy's directory; drawn weights by default"
    )
    parser.add_argument(
        "--widths", type=int, nargs="+", default=(64, 128, 256), help="of the drawn policy's U-Net"
    )
    parser.add_argument("--episodes", type=int, default=2)
    parser.add_argument("--env-steps", type=int, default=40, help="limit of an episode")
    parser.add_argument("--steps", default="75,30,0")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        desk = Path(name)
        model = wanted.model or drawn_policy(desk / "base", tuple(wanted.widths))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            run(app, ["lerobot", "--model", str(model), "--out", str(desk / "warm"), "--steps", wanted.steps])
        length = f"--env.episode_length={wanted.env_steps}"
        arms = {
            "as it is, chunks of 8": (model, ()),
            "as it is, each action": (model, ("--policy.n_action_steps=1",)),
            f"rti_dp {wanted.steps}, each action": (desk / "warm", (PLUGIN,)),
        }
        found = {}
        for number, (label, (folder, words)) in enumerate(arms.items()):
            overall = evaluated(folder, desk / f"out{number}", wanted.episodes, length, *words)
            found[label] = {"seconds an episode": overall["eval_ep_s"], "reward": overall["avg_sum_reward"]}
    times = [row["seconds an episode"] for row in found.values()]
    found["times faster than each action"] = times[1] / times[2]
    found["times faster than chunks"] = times[0] / times[2]
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
