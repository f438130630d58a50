"""Policies in a control loop: per-environment histories, queues, noise and statistics, and the full sampler.

`ReplanningPolicy` keeps everything that is not the method: a method overrides `plan` (and `forget` when it has a
memory of its own). `DiffusionPolicy` is the baseline that all methods are compared with.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.core.noise import mix64
from noiseworks.kits.policies.chunking import ChunkSpec
from noiseworks.kits.policies.loop import DenoisingLoop, film_table
from noiseworks.kits.policies.observing import Shapes, check_observation
from noiseworks.kits.policies.protocols import Chunk, DenoiserHost, Generators, Obs
from noiseworks.kits.policies.schedulers import Solver
from noiseworks.kits.policies.steps import StepTable, sampler_table
from torch import Tensor


@dataclass
class PolicyStats:
    """What a policy did; an evaluation starts a new one.

    Attributes:
        executed: Actions handed out, over all environments.
        row_calls: Network calls, counted once per environment in the batch.
        latencies: Seconds of each replan.
        nfes: Network calls of each replan.
        batches: Environments of each replan.
    """

    executed: int = 0
    row_calls: int = 0
    latencies: list[float] = field(default_factory=list)
    nfes: list[int] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def add(self, chunk: Chunk, rows: int) -> None:
        """Count a replan for `rows` environments."""
        self.row_calls += chunk.nfe * rows
        self.latencies.append(chunk.latency_s)
        self.nfes.append(chunk.nfe)
        self.batches.append(rows)

    @property
    def nfe_per_action(self) -> float:
        """Network calls per executed action."""
        return self.row_calls / max(1, self.executed)


class ReplanningPolicy:
    """Base of the action policies: replans when an environment's queue of actions is empty.

    Args:
        host: The trained policy.
        num_envs: Environments that it acts in.
        n_action_steps: Actions executed of each prediction; the host's own number by default.
        seed: Seed of the noise of environments whose reset names none.

    Raises:
        InputError: When a number is out of range.
    """

    def __init__(
        self, host: DenoiserHost, *, num_envs: int = 1, n_action_steps: int | None = None, seed: int = 0
    ) -> None:
        check_number("num_envs", num_envs, low=1, integer=True)
        steps = host.n_action_steps if n_action_steps is None else n_action_steps
        current = getattr(getattr(host, "chunk", None), "start_at_current", True)
        self.chunk = ChunkSpec(host.horizon, host.n_obs_steps, steps, current)
        self.host, self.num_envs, self.seed = host, num_envs, seed
        self._stated: Shapes = getattr(host, "observation_shapes", None) or {}
        self.stats = PolicyStats()
        self.generators = [torch.Generator().manual_seed(mix64(seed, i) >> 1) for i in range(num_envs)]
        self._history: dict[str, Tensor] = {}
        self._fresh = torch.ones(num_envs, dtype=torch.bool)
        self._queue = torch.zeros(num_envs, steps, host.action_dim)
        self._left = torch.zeros(num_envs, dtype=torch.int64)
        # Actions executed since each environment's last replan: what a warm start has to be shifted by.
        self.since = torch.zeros(num_envs, dtype=torch.int64)
        self.reset()

    def plan(
        self, cond: Any, ids: Sequence[int] | None, generator: Generators, rows: int
    ) -> tuple[Tensor, int]:
        """Return a prediction [rows, Tp, Da] in normalised units and the number of network calls.

        Args:
            cond: What `host.encode` returned for the rows.
            ids: The environments of the rows, or None when no environment's memory may be used.
            generator: Noise: one for the batch, one a row, or None.
            rows: Number of rows.
        """
        raise NotImplementedError

    def forget(self, ids: Sequence[int]) -> None:
        """Drop a method's own memory of some environments; nothing here."""

    def reset(self, ids: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> None:
        """Forget the past of some environments.

        Args:
            ids: Environments, by default all.
            seeds: Seed of each one's noise; by default its noise goes on where it is.

        Raises:
            InputError: When an id is out of range or the lengths differ.
        """
        ids = self._ids(ids)
        if seeds is not None and len(seeds) != len(ids):
            raise InputError(f"need one seed per environment, got {len(seeds)} for {len(ids)}")
        for i, seed in zip(ids, [] if seeds is None else seeds, strict=seeds is not None):
            self.generators[i].manual_seed(int(seed))
        self._fresh[ids], self._left[ids], self.since[ids] = True, 0, 0
        if bool(self._fresh.all()):  # the next observations may be of another kind
            self._history = {}
        self.forget(ids)

    @torch.inference_mode()
    def predict_chunk(self, obs: Obs, generator: Generators = None) -> Chunk:
        """Plan for observations [B, To, ...] without reading or changing any environment's past.

        Raises:
            InputError: When an entry is missing or has another shape.
            NonFiniteError: When one holds NaN or infinity.
        """
        obs = check_observation(obs, self._stated, (None, self.chunk.n_obs_steps))
        return self._replan(obs, None, generator)

    @torch.inference_mode()
    def act(self, obs: Obs, ids: Sequence[int] | None = None) -> Tensor:
        """Return the next actions [B, Da] in environment units, replanning for the rows that ran out.

        Args:
            obs: One observation per environment, tensors [B, ...]; the history is kept here.
            ids: The environments of the rows; by default all of them.

        Raises:
            InputError: When an entry that the policy reads is missing or has another shape, or the number of rows is
                not the number of environments; nothing is remembered or executed then.
            NonFiniteError: When an entry holds NaN or infinity, likewise.
        """
        ids = self._ids(ids)
        index = torch.as_tensor(ids)
        self.remember(obs, ids)
        empty = index[self._left[index] == 0]
        if len(empty):
            self._queue[empty] = self.replan(empty.tolist()).actions.to(self._queue)
            self._left[empty] = self.chunk.n_action_steps
        actions = self._queue[index, self.chunk.n_action_steps - self._left[index]]
        self._left[index] -= 1
        self.executed(ids)
        return actions

    @torch.inference_mode()
    def replan(self, ids: Sequence[int]) -> Chunk:
        """Plan for the remembered observations of some environments, now, and count it."""
        chunk = self._replan(self.past(ids), ids, [self.generators[i] for i in ids])
        self.since[list(ids)] = 0
        self.stats.add(chunk, len(ids))
        return chunk

    @property
    def observation_shapes(self) -> Shapes:
        """Shape of one observation by name: what the host states, else those of the first one since a full reset."""
        return self._stated or {name: tuple(value.shape[2:]) for name, value in self._history.items()}

    def past(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """Return the remembered observations [B, To, ...] of some environments."""
        return {name: value[list(ids)] for name, value in self._history.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that the next action depends on besides the host: a method adds its own memory."""
        state = {f"history.{name}": value.clone() for name, value in self._history.items()}
        state |= {"fresh": self._fresh.clone(), "queue": self._queue.clone(), "left": self._left.clone()}
        noise = torch.stack([generator.get_state() for generator in self.generators])
        return state | {"since": self.since.clone(), "generators": noise}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where a policy of the same settings was when it made `state`.

        Raises:
            InputError: When the state is another number of environments' or another chunk's.
        """
        if state["queue"].shape != self._queue.shape:
            found, own = tuple(state["queue"].shape), tuple(self._queue.shape)
            raise InputError(f"the state is of a queue of shape {found}, this policy's is {own}")
        names = [name for name in state if name.startswith("history.")]
        self._history = {name.removeprefix("history."): state[name].clone() for name in names}
        self._fresh, self._queue = state["fresh"].clone(), state["queue"].clone()
        self._left, self.since = state["left"].clone(), state["since"].clone()
        for generator, numbers in zip(self.generators, state["generators"], strict=True):
            generator.set_state(numbers.clone())

    def executed(self, ids: Sequence[int]) -> None:
        """Count one executed action in some environments."""
        self.since[list(ids)] += 1
        self.stats.executed += len(ids)

    def _replan(self, obs: Obs, ids: Sequence[int] | None, generator: Generators) -> Chunk:
        begin = time.perf_counter()
        rows = len(next(iter(obs.values())))
        prediction, nfe = self.plan(self.host.encode(obs), ids, generator, rows)
        actions = self.host.normalizer.unnormalize(prediction)[:, self.chunk.executed]
        return Chunk(actions, prediction, nfe, time.perf_counter() - begin)

    @torch.inference_mode()
    def remember(self, obs: Obs, ids: Sequence[int]) -> None:
        """Append observations [B, ...] to the histories; a new episode's first one fills its whole history.

        Raises:
            InputError: When an entry that the policy reads is missing or has another shape.
            NonFiniteError: When one holds NaN or infinity.
        """
        obs = check_observation(obs, self.observation_shapes, (len(ids),), ids)
        steps, index = self.chunk.n_obs_steps, torch.as_tensor(ids)
        for name, value in obs.items():
            if name not in self._history:
                shape = (self.num_envs, steps, *value.shape[1:])
                self._history[name] = torch.zeros(shape, dtype=value.dtype)
            old = self._history[name][index]
            value = value.to("cpu", old.dtype)
            moved = torch.cat((old[:, 1:], value[:, None]), dim=1)
            fresh = self._fresh[index].reshape(-1, *[1] * value.ndim)
            self._history[name][index] = torch.where(fresh, value[:, None].expand_as(moved), moved)
        self._fresh[index] = False

    def _ids(self, ids: Sequence[int] | None) -> list[int]:
        if ids is None:
            return list(range(self.num_envs))
        found = [int(i) for i in np.asarray(ids).reshape(-1)]
        if any(not 0 <= i < self.num_envs for i in found):
            raise InputError(f"environment ids must lie in 0 to {self.num_envs - 1}, got {found}")
        return found


class DiffusionPolicy(ReplanningPolicy):
    """The baseline: every replan starts from noise and runs the whole sampler, then executes a chunk.

    The samples are those of diffusers' schedulers, by the same lean loop that the methods run on.

    Args:
        host: The trained policy.
        solver: `ddpm` or `ddim`.
        num_inference_steps: Network calls of a replan; all of the training's by default.
        table: An own list of steps instead, which is run from fresh noise all the same.
        cache: Whether a U-Net of the kit gets its step modulations from a table, which gives the same up to rounding.
            The table is made now: make a new policy when weights have changed or something was attached.
        num_envs: Environments that it acts in.
        n_action_steps: Actions executed of each prediction; the host's own number by default.
        seed: Seed of the noise of environments whose reset names none.

    Raises:
        InputError: When a number is out of range.
        UnsupportedHostError: When the scheduler is of another kind, learns its variance or thresholds.
    """

    def __init__(
        self,
        host: DenoiserHost,
        *,
        solver: Solver = "ddpm",
        num_inference_steps: int | None = None,
        table: StepTable | None = None,
        cache: bool = False,
        num_envs: int = 1,
        n_action_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(host, num_envs=num_envs, n_action_steps=n_action_steps, seed=seed)
        if table is not None and num_inference_steps is not None:
            raise InputError("name num_inference_steps or a table of steps, not both")
        self.table = sampler_table(host.scheduler, solver, num_inference_steps) if table is None else table
        self.loop, self.films = DenoisingLoop(host, num_envs), film_table(host) if cache else None

    def plan(
        self, cond: Any, ids: Sequence[int] | None, generator: Generators, rows: int
    ) -> tuple[Tensor, int]:
        """Return a prediction from fresh noise."""
        self.loop.draw_(self.loop.start(rows), generator)
        return self.loop.run(self.table, cond, rows, generator, self.films).clone(), len(self.table)
