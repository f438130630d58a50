"""For tests of policies inside LeRobot: tiny policies of its own classes, and its own evaluation of them."""

import types
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

STATE, ENVIRONMENT, ACTION = 3, 5, 2
TRAIN_STEPS = 14


class Reach(gym.Env):
    """A point that an action moves, with observations under the names that LeRobot's environments use."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}
    task = task_description = "reach the middle"
    _max_episode_steps = 9

    def __init__(self) -> None:
        space = {"agent_pos": (STATE,), "environment_state": (ENVIRONMENT,)}
        self.observation_space = gym.spaces.Dict(
            {name: gym.spaces.Box(-np.inf, np.inf, shape, np.float64) for name, shape in space.items()}
        )
        self.action_space = gym.spaces.Box(-np.inf, np.inf, (ACTION,), np.float32)
        self.render_mode = "rgb_array"

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, np.ndarray], dict]:
        """Start at a drawn place."""
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.normal(size=ENVIRONMENT), 0
        return self._look(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict]:
        """Move by the action."""
        self.place[:ACTION] += 0.1 * np.asarray(action, np.float64)
        self.steps += 1
        over = self.steps >= self._max_episode_steps
        near = bool(np.abs(self.place[0]) < 1)
        return self._look(), float(near), False, over, {"is_success": near and over}

    def render(self) -> np.ndarray:
        """Return a grey frame."""
        return np.full((32, 32, 3), 128, np.uint8)

    def _look(self) -> dict[str, np.ndarray]:
        return {"agent_pos": self.place[:STATE].copy(), "environment_state": self.place.copy()}


def tiny_diffusion() -> nn.Module:
    """Return LeRobot's `DiffusionPolicy` with a tiny U-Net and drawn weights."""
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionConfig, DiffusionPolicy

    config = DiffusionConfig(
        n_obs_steps=2,
        horizon=8,
        n_action_steps=4,
        down_dims=(8, 16),
        n_groups=4,
        diffusion_step_embed_dim=8,
        num_train_timesteps=TRAIN_STEPS,
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (STATE,)),
            "observation.environment_state": PolicyFeature(FeatureType.ENV, (ENVIRONMENT,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
        device="cpu",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DiffusionPolicy(config).eval()


@contextmanager
def tiny_text_encoder() -> Any:
    """Give LeRobot's multi-task policy a drawn text encoder in place of the one that it loads by a hub name."""
    from lerobot.policies.multi_task_dit import modeling_multi_task_dit as modeling
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = CLIPTextModel(CLIPTextConfig(vocab_size=20, max_position_embeddings=8, **sizes))
    with mock.patch.object(modeling, "CLIPTextModel", types.SimpleNamespace(from_pretrained=lambda _: text)):
        yield


def tiny_multi_task(**changes: Any) -> nn.Module:
    """Return LeRobot's `MultiTaskDiTPolicy`, tiny and with drawn weights.

    Args:
        changes: Fields of its configuration, such as `objective`.
    """
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTConfig, MultiTaskDiTPolicy

    config = MultiTaskDiTConfig(
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, (STATE,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
        horizon=8,
        n_action_steps=4,
        hidden_dim=16,
        num_layers=2,
        num_heads=2,
        timestep_embed_dim=8,
        num_train_timesteps=TRAIN_STEPS,
        num_integration_steps=TRAIN_STEPS,
        device="cpu",
        **changes,
    )
    with tiny_text_encoder():
        policy = MultiTaskDiTPolicy(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.noise_predictor.parameters():  # its gates start at 0, which hides every error
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return policy.eval()


def instructed(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch with the tokens of an instruction."""
    ones = torch.ones(len(batch["observation.state"]), 5, dtype=torch.int64)
    return batch | {"observation.language.tokens": ones, "observation.language.attention_mask": ones}


@dataclass(frozen=True)
class Run:
    """What LeRobot's evaluation did with a policy.

    Attributes:
        actions: Executed actions [episodes, steps, Da].
        calls: Calls of the denoiser.
        episodes: Episodes in its report.
    """

    actions: Tensor
    calls: int
    episodes: int


def lerobot_evaluation(
    policy: nn.Module, denoiser: nn.Module, *, envs: int = 2, episodes: int = 4, recording: Path | None = None
) -> Run:
    """Return what LeRobot's own `eval_policy` makes of a policy in `Reach`.

    Args:
        policy: The policy object.
        denoiser: Its network, whose calls are counted.
        envs: Environments of a batch.
        episodes: Episodes.
        recording: Folder for LeRobot's own datasets of one batch of episodes, one an environment.
    """
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.scripts import lerobot_eval

    vector = gym.vector.SyncVectorEnv([Reach] * envs, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    features = {
        "agent_pos": PolicyFeature(FeatureType.STATE, (STATE,)),
        "action": PolicyFeature(FeatureType.ACTION, (ACTION,)),
    }
    calls, taken = [], []
    hook = denoiser.register_forward_hook(lambda *_: calls.append(1))
    rollout = lerobot_eval.rollout

    def kept(**arguments: Any) -> dict:
        taken.append(rollout(**arguments))
        return taken[-1]

    try:
        with torch.random.fork_rng(devices=[]), mock.patch.object(lerobot_eval, "rollout", kept):
            torch.manual_seed(1)
            found = lerobot_eval.eval_policy(
                vector,
                policy,
                dict,
                dict,
                instructed,
                Tensor.clone,
                episodes,
                start_seed=3,
                recording_dir=recording,
                env_features=features,
            )
    finally:
        hook.remove()
        vector.close()
    return Run(torch.cat([one["action"] for one in taken]), len(calls), len(found["per_episode"]))
