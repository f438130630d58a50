"""Dreams as a Gymnasium vector environment (section 3.2): observations are features, actions are chunks.

    env = LatentEnv(WorldDream(model, classifier, starts, generator), chunk=4, limit=72, num_envs=50)

Any learner of vector environments drives it, and so none of a real environment's steps is needed.
"""

from typing import Any, Protocol

import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.diwa.rewards import SuccessClassifier
from noiseworks.diwa.world_model import State, WorldModel
from torch import Tensor


class Dream(Protocol):
    """A law of motion of N rows that chunks are played in.

    Attributes:
        features: Width of a feature.
        action_dim: Width of an action.
    """

    features: int
    action_dim: int

    def begin(self, rows: np.ndarray, seed: int | None) -> None:
        """Begin episodes in some rows, bool [N]; a seed restarts all draws."""
        ...

    def step(self, actions: Tensor) -> None:
        """Play one action [N, Da]."""
        ...

    def feature(self) -> Tensor:
        """Return the present features [N, F]."""
        ...

    def reward(self) -> tuple[Tensor, Tensor]:
        """Return reward float [N] and whether the task has ended, bool [N], for where the rows are."""
        ...


class WorldDream:
    """Dreams of a world model, judged by a success classifier.

    Args:
        model: The frozen world model.
        classifier: What counts as success; success ends an episode and is worth 1.
        starts: Latent states that episodes begin from, S of them.
        num_envs: Rows N.

    Raises:
        InputError: When there is no start, or the classifier reads other features.
    """

    def __init__(
        self, model: WorldModel, classifier: SuccessClassifier, starts: State, num_envs: int
    ) -> None:
        if not len(starts.deter):
            raise InputError(
                "there is no latent state to begin from: give demonstrations of at least one episode"
            )
        features = starts.feature.shape[1]
        if not features == model.sizes.features == classifier.features:
            raise InputError(
                f"the starts have features of {features}, the world model of {model.sizes.features}, the classifier "
                f"reads {classifier.features}: fit them to one world model"
            )
        self.model, self.classifier, self.starts = model, classifier, starts
        self.features, self.action_dim = features, model.action_dim
        self.state, self.generator = model.begin(num_envs), torch.Generator().manual_seed(0)

    def begin(self, rows: np.ndarray, seed: int | None) -> None:
        """Begin episodes from latents drawn anew."""
        if seed is not None:
            self.generator.manual_seed(seed)
        index = torch.randint(len(self.starts.deter), (len(rows),), generator=self.generator)
        fresh = State(*(part[index] for part in self.starts))
        self.state = self.state.where(torch.as_tensor(rows), fresh)

    @torch.no_grad()
    def step(self, actions: Tensor) -> None:
        """Imagine one step."""
        self.state = self.model.imagine(self.state, actions, self.generator)

    def feature(self) -> Tensor:
        """Return the present features."""
        return self.state.feature

    def reward(self) -> tuple[Tensor, Tensor]:
        """Return 1 for success, which ends the episode."""
        found = self.classifier.success(self.feature())
        return found.float(), found


class LatentEnv(VectorEnv):
    """Episodes of a dream. A step plays a chunk; only where it led to is looked at.

    Args:
        dream: The law of motion and the reward.
        num_envs: Episodes N that are dreamt together.
        chunk: Actions of a step, C.
        limit: Actions after which an episode is cut.

    Raises:
        InputError: When chunks do not divide the limit.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012  (Gymnasium's own form)

    def __init__(self, dream: Dream, num_envs: int, chunk: int, limit: int) -> None:
        for name, value in {"num_envs": num_envs, "chunk": chunk, "limit": limit}.items():
            check_number(name, value, low=1, integer=True)
        if limit % chunk:
            raise InputError(f"limit must be a multiple of the chunk ({chunk}), got {limit}")
        self.dream, self.num_envs, self.chunk, self.limit = dream, num_envs, chunk, limit
        self.single_observation_space = Box(-np.inf, np.inf, (dream.features,), np.float32)
        self.single_action_space = Box(-1.0, 1.0, (chunk, dream.action_dim), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.played = np.zeros(num_envs, np.int64)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin episodes everywhere."""
        super().reset(seed=seed)
        self.dream.begin(np.ones(self.num_envs, bool), seed)
        self.played[:] = 0
        return self._seen(), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Play chunks [N, C, Da]."""
        for one in torch.as_tensor(np.asarray(actions), dtype=torch.float32).unbind(1):
            self.dream.step(one)
        self.played += self.chunk
        reward, ended = (part.cpu().numpy() for part in self.dream.reward())
        cut = ~ended & (self.played >= self.limit)
        info: dict[str, Any] = {"success": ended, "steps": np.full(self.num_envs, self.chunk)}
        seen, over = self._seen(), ended | cut
        if over.any():
            info |= {"final_obs": seen, "_final_obs": over}
            self.dream.begin(over, None)
            self.played[over] = 0
            seen = self._seen()
        return seen, reward.astype(np.float64), ended, cut, info

    def _seen(self) -> np.ndarray:
        return self.dream.feature().detach().cpu().numpy().astype(np.float32)
