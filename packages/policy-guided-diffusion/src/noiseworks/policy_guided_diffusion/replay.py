"""Synthetic experience for an agent: pools of trajectories that are made again as the agent's policy changes."""

from typing import Any

import torch
from noiseworks.core.errors import InputError
from noiseworks.core.noise import mix64
from noiseworks.kits.rl.offline import Batch
from noiseworks.policy_guided_diffusion.model import TrajectoryDiffusion
from noiseworks.policy_guided_diffusion.options import Guidance, Replay, Sampling


class SyntheticReplay:
    """Batches of synthetic and real transitions; calling it with an update's number gives that update's batch.

    The pool is built before the first update without guidance and again every `refresh_every` updates, guided towards
    the policy of that moment.

    Args:
        model: The trajectory model.
        policy: The policy, which changes as it learns; None for pools without guidance.
        real: All real transitions.
        replay: Sizes.
        guidance: How the policy guides.
        sampling: How trajectories are denoised.
        seed: Of pools and batches.

    Raises:
        InputError: When the data's widths are not the model's.
    """

    def __init__(
        self,
        model: TrajectoryDiffusion,
        policy: Any,
        real: Batch,
        replay: Replay,
        guidance: Guidance,
        sampling: Sampling,
        seed: int = 0,
    ) -> None:
        check_data(model, real.obs.shape[1], real.actions.shape[1])
        self.model, self.policy, self.real, self.replay = model, policy, real, replay
        self.guidance, self.sampling, self.seed = guidance, sampling, seed
        self.pools: list[Batch] = []
        self.built = 0
        self.generator = torch.Generator().manual_seed(mix64(seed, 1) >> 1)

    def __call__(self, update: int) -> Batch:
        """Return the batch of an update; the updates are asked for in order."""
        if update >= self.built * self.replay.refresh_every:
            self._build()
        real = round(self.replay.real_share * self.replay.batch_size)
        parts = [self.real.sample(real, self.generator)] if real else []
        rest, pools = self.replay.batch_size - real, len(self.pools)
        shares = [rest // pools + (i < rest % pools) for i in range(pools)]
        parts += [pool.sample(n, self.generator) for pool, n in zip(self.pools, shares, strict=True) if n]
        return Batch(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def _build(self) -> None:
        policy = self.policy if self.built else None
        made = self.model.sample(
            self.replay.pool,
            policy,
            self.guidance,
            self.sampling,
            seed=mix64(self.seed, 2, self.built) >> 1,
        )
        pool = Batch.of(made.transitions(), self.real.obs.device)
        self.pools = [*self.pools, pool][-self.replay.lifetime :]
        self.built += 1

    def state_dict(self) -> dict[str, Any]:
        """Return pools and random state, from which batches go on."""
        pools = [tuple(part.clone() for part in pool) for pool in self.pools]
        return {"pools": pools, "built": self.built, "random": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`."""
        self.pools = [Batch(*parts) for parts in state["pools"]]
        self.built = state["built"]
        self.generator.set_state(state["random"])


def check_data(model: TrajectoryDiffusion, obs_dim: int, action_dim: int) -> None:
    """Refuse data of another task than the model's.

    Raises:
        InputError: Naming both widths.
    """
    if (obs_dim, action_dim) != (model.scaler.obs_dim, model.scaler.action_dim):
        raise InputError(
            f"the data have {obs_dim} observations and {action_dim} actions, the model has {model.scaler.obs_dim} and "
            f"{model.scaler.action_dim}"
        )
