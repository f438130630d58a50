"""Real-time iteration in LeRobot's own evaluation: on its policy objects, and as a policy type of its command line."""

import json
import sys

import pytest
import torch
from noiseworks.core.cli import run
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.kits.policies.hosts import as_host
from noiseworks.kits.policies.replanning import DiffusionPolicy
from noiseworks.kits.policies.testing import (
    ENVIRONMENT,
    STATE,
    TRAIN_STEPS,
    instructed,
    lerobot_evaluation,
    tiny_diffusion,
    tiny_multi_task,
)
from noiseworks.rti_dp import RTIPolicy
from noiseworks.rti_dp.cli import app
from noiseworks.rti_dp.lerobot import attach
from noiseworks.rti_dp.options import Iteration

WARM = Iteration(steps="5,2,0")
STEPS, EPISODES, ENVS = 9, 4, 2


def network(policy):
    return policy.noise_predictor if hasattr(policy, "noise_predictor") else policy.diffusion.unet


@pytest.mark.parametrize(
    ("make", "iteration"),
    [
        (tiny_diffusion, WARM),
        (lambda: tiny_multi_task(objective="diffusion"), WARM),
        (lambda: tiny_multi_task(objective="flow_matching"), Iteration(steps="5,2,0", solver="ddim")),
    ],
    ids=["diffusion", "multi-task diffusion", "multi-task flow"],
)
def test_lerobots_own_evaluation_runs_an_attached_policy_with_fewer_calls_and_gets_its_bits_back(
    make, iteration
):
    policy = make()
    plain = lerobot_evaluation(policy, network(policy), envs=ENVS, episodes=EPISODES)
    assert plain.calls == EPISODES // ENVS * 3 * TRAIN_STEPS  # nine steps in chunks of four
    with attach(policy, iteration) as handle:
        warm = lerobot_evaluation(policy, network(policy), envs=ENVS, episodes=EPISODES)
        again = handle.controller.stats
    # One full replan an episode, then three calls at every step.
    assert warm.calls == EPISODES // ENVS * (TRAIN_STEPS + (STEPS - 1) * 3)
    assert again.row_calls == warm.calls * ENVS
    assert warm.episodes == plain.episodes == EPISODES
    assert warm.actions.shape == plain.actions.shape == (EPISODES, STEPS, 2)
    assert not torch.equal(warm.actions, plain.actions)
    after = lerobot_evaluation(policy, network(policy), envs=ENVS, episodes=EPISODES)
    assert torch.equal(after.actions, plain.actions)
    assert after.calls == plain.calls


def test_a_flow_policys_full_run_is_lerobots_euler_integration_bit_for_bit():
    policy = tiny_multi_task(objective="flow_matching")
    host = as_host(policy)
    state = torch.randn(2, 2, STATE, generator=torch.Generator().manual_seed(0))
    obs = instructed({"observation.state": state})
    obs = {
        name: value if value.ndim == 3 else value[:, None].expand(-1, 2, -1) for name, value in obs.items()
    }
    cond = host.encode(obs)
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(5)
        expected = policy.objective.conditional_sample(policy.noise_predictor, 2, cond)
    sampler = DiffusionPolicy(host, solver="ddim")
    found = sampler.predict_chunk(obs, torch.Generator().manual_seed(5)).prediction
    assert torch.equal(found, expected)
    assert len(DiffusionPolicy(host, solver="ddim", num_inference_steps=5).table) == 5
    for refused in (
        lambda: RTIPolicy(host, (5, 0)),
        lambda: RTIPolicy(host, (5, 0), solver="ddim", schedule="linear100"),
    ):
        with pytest.raises(InputError, match="flow-matching"):
            refused()


def look(rows):
    return {
        "observation.state": torch.zeros(rows, STATE),
        "observation.environment_state": torch.zeros(rows, ENVIRONMENT),
    }


def test_a_wrong_observation_or_number_of_environments_stops_the_attached_policy_at_once():
    policy = tiny_diffusion()
    with attach(policy, WARM) as handle:
        policy.select_action(look(2))
        with pytest.raises(InputError, match="environment_state"):
            policy.select_action({"observation.state": torch.zeros(2, STATE)})
        with pytest.raises(NonFiniteError, match="nothing was done"):
            policy.select_action(look(2) | {"observation.state": torch.full((2, STATE), torch.nan)})
        with pytest.raises(InputError, match="reset"):
            policy.select_action(look(3))
        with pytest.raises(InputError, match="noise"):
            policy.select_action(look(2), noise=torch.zeros(2, 8, 2))
        with pytest.raises(InputError, match="attached"):
            attach(policy, WARM)
        assert handle.controller.stats.executed == 2
        policy.reset()
        assert policy.select_action(look(3)).shape == (3, 2)
        assert handle.controller.stats.nfes == [TRAIN_STEPS]
    assert "select_action" not in vars(policy)
    with pytest.raises(InputError, match="13"):
        attach(policy, Iteration(steps="14,0"))


PLUGIN = """
import gymnasium as gym
from dataclasses import dataclass, field
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from noiseworks.kits.policies.testing import Reach

gym.register("gym_reach/Reach-v0", Reach)


@EnvConfig.register_subclass("reach")
@dataclass
class ReachConfig(EnvConfig):
    task: str = "Reach-v0"
    features: dict = field(default_factory=lambda: {
        "agent_pos": PolicyFeature(FeatureType.STATE, (3,)),
        "environment_state": PolicyFeature(FeatureType.ENV, (5,)),
        "action": PolicyFeature(FeatureType.ACTION, (2,)),
    })
    features_map: dict = field(default_factory=lambda: {
        "agent_pos": "observation.state",
        "environment_state": "observation.environment_state",
        "action": "action",
    })

    @property
    def gym_kwargs(self):
        return {}
"""


@pytest.mark.filterwarnings("ignore")
def test_lerobot_eval_runs_the_exported_policy_by_name(tmp_path, monkeypatch, capsys):
    from lerobot.policies.diffusion.processor_diffusion import make_diffusion_pre_post_processors
    from lerobot.scripts.lerobot_eval import eval_main

    policy, ones = tiny_diffusion(), torch.ones
    sizes = {"observation.state": STATE, "observation.environment_state": ENVIRONMENT, "action": 2}
    stats = {name: {"min": -3 * ones(n), "max": 3 * ones(n)} for name, n in sizes.items()}
    for processor in make_diffusion_pre_post_processors(policy.config, stats):
        processor.save_pretrained(tmp_path / "base")
    policy.save_pretrained(tmp_path / "base")
    line = f"lerobot --model {tmp_path / 'base'} --out {tmp_path / 'warm'} --steps 5,2,0"
    with pytest.raises(SystemExit) as end:
        run(app, line.split())
    assert end.value.code == 0
    (tmp_path / "reach_plugin").mkdir()
    (tmp_path / "reach_plugin" / "__init__.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    seen = []
    call = RTIPolicy.act
    monkeypatch.setattr(RTIPolicy, "act", lambda self, *args: seen.append(self) or call(self, *args))
    shown = capsys.readouterr().out.split("lerobot-eval ")[1].split()
    words = [
        *shown[:2],  # the policy and the plugin, as printed
        "--policy.refresh_every=4",
        "--policy.device=cpu",
        "--env.discover_packages_path=reach_plugin",
        "--env.type=reach",
        "--eval.n_episodes=2",
        "--eval.batch_size=2",
        f"--output_dir={tmp_path / 'results'}",
    ]
    monkeypatch.setattr(sys, "argv", ["lerobot-eval", *words])
    eval_main()
    report = json.loads((tmp_path / "results" / "eval_info.json").read_text())
    assert report["overall"]["n_episodes"] == 2
    assert len(seen) == STEPS
    # Cold at the steps 0, 5: the option of the command line reached the method.
    assert seen[0].stats.nfes == [14, 3, 3, 3, 3, 14, 3, 3, 3]
