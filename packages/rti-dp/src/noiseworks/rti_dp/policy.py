"""`RTIPolicy`: replan at every step from the previous plan, in a few network calls (arXiv 2508.05396)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.kits.policies.hosts import as_host
from noiseworks.kits.policies.loop import DenoisingLoop, film_table
from noiseworks.kits.policies.protocols import Chunk, Generators
from noiseworks.kits.policies.replanning import ReplanningPolicy
from noiseworks.kits.policies.schedulers import Solver
from noiseworks.kits.policies.steps import sampler_table
from noiseworks.rti_dp.discrete import DiscreteSpec
from noiseworks.rti_dp.options import STEPS, StepNoise, Stepping, parse_steps
from noiseworks.rti_dp.schedule import Schedule, choose_schedule
from noiseworks.rti_dp.stepping import step_table
from torch import Tensor

RefreshRule = Callable[[Mapping[str, Tensor], Tensor], Tensor]


class RTIPolicy(ReplanningPolicy):
    """Real-time iteration on a trained diffusion policy; nothing is trained and nothing is attached.

    An environment's first replan after a reset is the host's full sampler. Each later one starts from the last
    prediction, moved on by the actions executed since and with its last entry repeated, takes it for the sample
    at level `steps[0]`, and runs the few steps of the list under the new observation.

    Args:
        host: A `DenoiserHost`, or a policy of LeRobot or the diffusion_policy library. One that conditions by
            inpainting has a method `impose(x, cond)`, which overwrites known entries of x [B, Tp, Da] in place; it
            is called before every network call and at the end.
        steps: Denoising indices, decreasing, ending in 0; or the words of the command line, such as `75,30,0` or, for
            the authors' list of a task, `square:clip:image`. The smaller the first, the closer a plan stays to the
            last one, and the less it can correct.
        stepping: Where a step leads to: `consistent`, the list's next index; `reference`, k - 1, as the authors'
            code does.
        discrete: Discrete dimensions of an action, such as a gripper: a `DiscreteSpec`, or its words as at the
            command line, such as `2:clip:10`.
        execute: Actions executed of each prediction; under an inference delay of d control steps at least d + 1.
        solver: `ddpm` or `ddim`.
        noise: `posterior`, or `none` for the mean of the warm DDPM steps.
        initial_steps: Network calls of a cold start; all of the training's by default.
        refresh_every: Warm replans after which an environment starts cold again; None for never.
        refresh_if: Called with the observations {name: [B, To, ...]} and the moved guess [B, Tp, Da] in
            environment units; returns bool [B], which rows start cold.
        shift: Whether the guess is moved on in time; False is an ablation.
        forward_noise: Whether the guess is brought to the noise level of `steps[0]`; True is an ablation.
        schedule: See `choose_schedule`.
        cache: Whether a U-Net of the kit gets its step modulations from a table, which gives the same up to
            rounding. The table is made now: make a new policy when weights have changed or a hook was added.
        num_envs: Environments that it acts in.
        seed: Seed of the noise of environments whose reset names none.

    Attributes:
        guess: Last predictions in normalised units, float32 [num_envs, Tp, Da].
        warm: Which environments have one, bool [num_envs].
        restarts: Cold starts forced by a guess or prediction that was not finite.

    Raises:
        InputError: When an argument is out of range, or the scheduler is not the checkpoint's.
        UnsupportedHostError: When the policy or its scheduler is of an unknown kind.
    """

    def __init__(
        self,
        host: Any,
        steps: Sequence[int] | str = STEPS,
        *,
        stepping: Stepping = "consistent",
        discrete: DiscreteSpec | str | None = None,
        execute: int = 1,
        solver: Solver = "ddpm",
        noise: StepNoise = "posterior",
        initial_steps: int | None = None,
        refresh_every: int | None = None,
        refresh_if: RefreshRule | None = None,
        shift: bool = True,
        forward_noise: bool = False,
        schedule: Schedule = "checkpoint",
        cache: bool = True,
        num_envs: int = 1,
        seed: int = 0,
    ) -> None:
        host = as_host(host)
        check_number("num_envs", num_envs, low=1, integer=True)
        if refresh_every is not None:
            check_number("refresh_every", refresh_every, low=1, integer=True)
        self.discrete = DiscreteSpec.of(discrete)
        self.discrete.check(host.action_dim, host.normalizer)
        scheduler = choose_schedule(host, schedule)
        steps = parse_steps(steps) if isinstance(steps, str) else steps
        self.table = step_table(scheduler, steps, stepping=stepping, solver=solver, noise=noise)
        self.initial_table = sampler_table(scheduler, solver, initial_steps)
        self.shift, self.forward_noise = shift, forward_noise
        self.refresh_every, self.refresh_if = refresh_every, refresh_if
        self.loop = DenoisingLoop(host, num_envs)
        self.films = film_table(host) if cache else None
        if self.films is not None:
            self.films.table(self.table.timesteps)  # so that the first warm replan is as fast as the next
        self.guess = torch.zeros(num_envs, host.horizon, host.action_dim, device=self.loop.device)
        self.warm = torch.zeros(num_envs, dtype=torch.bool)
        self._replans = torch.zeros(num_envs, dtype=torch.int64)
        self.restarts = 0
        super().__init__(host, num_envs=num_envs, n_action_steps=execute, seed=seed)

    def forget(self, ids: Sequence[int]) -> None:
        """Drop the guesses of some environments, which then start cold."""
        self.warm[list(ids)], self._replans[list(ids)] = False, 0

    @torch.inference_mode()
    def replan(self, ids: Sequence[int]) -> Chunk:
        """Plan for some environments, cold where there is no guess and warm elsewhere, and count it.

        A row whose warm prediction is not finite starts cold in the same call and is counted in `restarts`.

        Raises:
            NonFiniteError: When a cold start is not finite either.
        """
        ids = list(ids)
        cold = self._due(ids)
        warm = [i for i in ids if i not in cold]
        parts = []
        if warm:
            parts.append((warm, super().replan(warm)))
            broken = {i for i in warm if not self.warm[i]}
            self.restarts += len(broken)
            cold |= broken
        if cold:
            rows = [i for i in ids if i in cold]
            self.forget(rows)
            parts.append((rows, super().replan(rows)))
            broken = [i for i in rows if not self.warm[i]]
            if broken:
                raise NonFiniteError(
                    f"the full denoising of environments {broken} is not finite: look for NaN in their "
                    "observations or in the network's weights"
                )
        return parts[0][1] if len(parts) == 1 else _joined(ids, parts)

    def plan(
        self, cond: Any, ids: Sequence[int] | None, generator: Generators, rows: int
    ) -> tuple[Tensor, int]:
        """Return predictions, by the few warm steps when every row has a guess, else by the full sampler."""
        x = self.loop.start(rows)
        warm = ids is not None and bool(self.warm[ids].all())
        if warm:
            self._guess_into(x, ids, generator)
            self._replans[ids] += 1
        else:
            self.loop.draw_(x, generator)
        table = self.table if warm else self.initial_table
        self.loop.run(table, cond, rows, generator, self.films if warm else None)
        prediction = x.clone()
        if ids is not None:
            self.warm[ids] = x.isfinite().flatten(1).all(1).cpu()
            self.guess[ids] = self.discrete.snap_guess_(x)
        return self.discrete.decide_(prediction), len(table)

    def moved_guess(self, ids: Sequence[int]) -> Tensor:
        """Return the guesses [B, Tp, Da] moved on by the actions executed since, the last entry repeated."""
        guess = self.guess[list(ids)]
        if not self.shift:
            return guess
        last = self.host.horizon - 1
        entry = (torch.arange(last + 1) + self.since[list(ids), None]).clamp_max(last)
        return guess.gather(1, entry.to(guess.device)[..., None].expand_as(guess))

    def _guess_into(self, x: Tensor, ids: Sequence[int], generator: Generators) -> None:
        guess = self.moved_guess(ids)
        if self.forward_noise:
            noise = self.loop.draw_(x, generator).mul_(self.table.sigma[0])
            guess = noise + self.table.signal[0] * guess
        x.copy_(guess)

    def _due(self, ids: list[int]) -> set[int]:
        """Return the environments that have to start cold."""
        due = ~self.warm[ids]
        if self.refresh_every is not None:
            due |= self._replans[ids] >= self.refresh_every
        if self.refresh_if is not None and not bool(due.all()):
            rows = [i for i, one in zip(ids, due.tolist(), strict=True) if not one]
            guess = self.host.normalizer.unnormalize(self.moved_guess(rows))
            found = torch.as_tensor(self.refresh_if(self.past(rows), guess))
            if found.shape != (len(rows),):
                raise InputError(
                    f"refresh_if must return one flag for each of {len(rows)} rows, got shape {tuple(found.shape)}"
                )
            due[~due] = found.bool().cpu()
        return {i for i, one in zip(ids, due.tolist(), strict=True) if one}

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that the next action depends on besides the host: guesses, flags, queues, noise."""
        own = {"guess": self.guess.clone(), "warm": self.warm.clone(), "replans": self._replans.clone()}
        return super().state_dict() | own

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where a policy of the same settings was when it made `state`.

        Raises:
            InputError: When the state is another number of environments' or another chunk's.
        """
        super().load_state_dict(state)
        self.guess = state["guess"].to(self.loop.device, copy=True)
        self.warm, self._replans = state["warm"].clone(), state["replans"].clone()


def _joined(ids: list[int], parts: list[tuple[list[int], Chunk]]) -> Chunk:
    """Return the chunks of some rows as one in the order of `ids`; later chunks replace earlier ones."""
    place = {i: row for row, i in enumerate(ids)}
    first = parts[0][1]
    actions, prediction = (t.new_empty((len(ids), *t.shape[1:])) for t in (first.actions, first.prediction))
    for rows, chunk in parts:
        index = [place[i] for i in rows]
        actions[index], prediction[index] = chunk.actions, chunk.prediction
    calls, seconds = (sum(getattr(chunk, name) for _, chunk in parts) for name in ("nfe", "latency_s"))
    return Chunk(actions, prediction, calls, seconds)
