"""The streaming policy: each control cycle denoises the whole buffer until its first chunk is clean."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.kits.policies.loop import DenoisingLoop, film_table
from noiseworks.kits.policies.protocols import DenoiserHost, Generators
from noiseworks.kits.policies.replanning import ReplanningPolicy
from noiseworks.kits.policies.steps import StepTable
from noiseworks.streaming_dp.buffer import ActionBuffer
from noiseworks.streaming_dp.hosts import check_levels_host, check_streams
from noiseworks.streaming_dp.levels import Levels
from noiseworks.streaming_dp.options import BufferInit, Solver
from noiseworks.streaming_dp.solvers import per_step_scheduler
from torch import Tensor

MAX_CYCLES = 256


class Cycle(NamedTuple):
    """All that the cycle from one level vector needs, made once.

    Attributes:
        table: Its steps, a network call each, with coefficients [Tp, 1].
        end: Levels afterwards.
    """

    table: StepTable
    end: Levels


class StreamingPolicy(ReplanningPolicy):
    """Streaming Diffusion Policy (Høeg et al. 2024) on a host that reads a level for each position.

    A host that conditions by inpainting has a method `impose(x, cond)`, which overwrites known entries of the
    buffer [B, Tp, Da] in place; it is called before every network call.

    Args:
        host: From `convert`, `StreamingHost` or `train`, or an own one whose `denoise` takes (B, Tp) timesteps.
        buffer_init: Actions at the start of an episode, noised to the buffer's levels: `zero`, `constant`
            (`constant`'s value everywhere) or `denoise` (a full run at equal levels, whose first chunk is
            executed as it is).
        constant: Action [Da] in environment units for `constant`.
        renoise_prefix: Whether the To - 1 executed actions that stay in the buffer as the past are noised to
            their label. False leaves them clean under a noisy label, as the authors' code does.
        num_levels: Inference levels M, at least the number of chunks; all training timesteps by default.
        solver: `ddpm`, `ddim` or `karras`, per position: see `per_step_scheduler`.
        churn: Noise that solver `karras` adds, S_churn, for policies trained on an EDM schedule.
        num_envs: Environments that it acts in.
        n_action_steps: Actions executed a cycle, Ta; the host's own number by default.
        seed: Seed of the noise of environments whose reset names none.
        compile_network: Whether `torch.compile` compiles the U-Net's trunk.

    Raises:
        InputError: When an argument is out of range.
        UnsupportedHostError: When the host takes one diffusion step for all positions.
    """

    def __init__(
        self,
        host: DenoiserHost,
        *,
        buffer_init: BufferInit = "zero",
        constant: Sequence[float] | None = None,
        renoise_prefix: bool = True,
        num_levels: int | None = None,
        solver: Solver | None = None,
        churn: float = 0.0,
        num_envs: int = 1,
        n_action_steps: int | None = None,
        seed: int = 0,
        compile_network: bool = False,
    ) -> None:
        host = check_levels_host(host)
        check_choice("buffer_init", buffer_init, ("zero", "constant", "denoise"))
        levels = host.scheduler.config.num_train_timesteps if num_levels is None else num_levels
        steps = host.n_action_steps if n_action_steps is None else n_action_steps
        self.spec = check_streams(host, steps, levels)
        self.scheduler = per_step_scheduler(host.scheduler, solver, levels, churn)
        self.buffer_init, self.renoise_prefix = buffer_init, renoise_prefix
        self.films = film_table(host)
        if compile_network:
            if self.films is None:
                raise InputError(
                    "compile_network works on native U-Nets; compile other hosts' networks yourself"
                )
            self.films.trunk = torch.compile(self.films.net.trunk, dynamic=False)
        check_number("num_envs", num_envs, low=1, integer=True)
        self.loop = DenoisingLoop(host, num_envs)
        device = self.loop.device
        self._start_action = (self._constant(host, constant) / self.scheduler.data_scale).to(device)
        self._alpha, self._sigma = (part[:, None].to(device) for part in self.scheduler.noising)
        self._table = self.scheduler.table
        self._cycles: dict[Levels, Cycle] = {}
        self.memory = ActionBuffer(self.spec, num_envs, host.action_dim, device)
        # Rows that were restarted because a value was not finite.
        self.restarts = 0
        super().__init__(host, num_envs=num_envs, n_action_steps=steps, seed=seed)

    def _constant(self, host: DenoiserHost, constant: Sequence[float] | None) -> Tensor:
        if (self.buffer_init == "constant") != (constant is not None):
            raise InputError(
                "buffer_init 'constant' and a constant action go together, "
                f"got {self.buffer_init!r} and {constant!r}"
            )
        if constant is None:
            return torch.zeros(host.action_dim)
        value = torch.as_tensor(constant, dtype=torch.float32)
        if value.shape != (host.action_dim,) or not bool(value.isfinite().all()):
            raise InputError(
                f"the constant action must hold {host.action_dim} finite numbers, got {constant}"
            )
        return host.normalizer.normalize(value[None])[0].cpu()

    def forget(self, ids: Sequence[int]) -> None:
        """Restart the buffers of some environments at their next plan."""
        self.memory.forget(ids)

    def advance(self, n: int, ids: Sequence[int] | None = None) -> None:
        """Tell that only `n` actions of the last chunk were executed, and replan at the next observation.

        Args:
            n: 0 to Ta.
            ids: Environments; all by default.

        Raises:
            InputError: When `n` is out of range or an environment has no plan.
        """
        ids = self._ids(ids)
        if not 0 <= n <= self.spec.n_action_steps:
            raise InputError(
                f"advance takes 0 to n_action_steps = {self.spec.n_action_steps} executed actions, got {n}"
            )
        waiting = [i for i in ids if self.memory.levels[i] is None]
        if waiting:
            raise InputError(f"environments {waiting} have no plan to advance; call act or replan first")
        self.since[ids], self._left[ids] = n, 0

    def plan(
        self, cond: Any, ids: Sequence[int] | None, generator: Generators, rows: int
    ) -> tuple[Tensor, float]:
        """Return the buffer [rows, Tp, Da] after a cycle, its first chunk clean, and the network calls of a row.

        Args:
            cond: What `host.encode` returned for the rows.
            ids: The environments of the rows, or None for a cycle from new buffers that are then dropped.
            generator: Noise: one for the batch, one a row, or None.
            rows: Number of rows.

        Raises:
            InputError: When more actions than a chunk's were executed since the last plan.
            NonFiniteError: When a row is not finite even from a new buffer.
        """
        x = self.loop.start(rows)
        memory, numbers, executed = self.memory, ids, [0] * rows
        if ids is None:
            memory, numbers = ActionBuffer(self.spec, rows, self.host.action_dim, x.device), range(rows)
        else:
            executed = self.since[list(ids)].tolist()
        generators = _per_row(generator, rows)
        new = [memory.levels[i] is None for i in numbers]
        starts = [
            self._new(x[row], generators[row])
            if new[row]
            else self._continued(memory, i, x[row], executed[row], generators[row])
            for row, i in enumerate(numbers)
        ]
        calls, ends = self._denoise(starts, new, x, cond, generators)
        for row in self._broken(x):
            new[row] = True
            starts[row] = self._new(x[row], generators[row])
            part = x[row : row + 1]
            again, (ends[row],) = self._denoise(
                [starts[row]], [True], part, _take(cond, [row]), [generators[row]]
            )
            calls, self.restarts = calls + again, self.restarts + 1
            if self._broken(part):
                raise NonFiniteError(
                    f"the plan of environment {numbers[row]} is not finite, also from a new buffer: check its "
                    "observation and the policy's weights"
                )
        memory.write(numbers, x)
        for i, end in zip(numbers, ends, strict=True):
            memory.levels[i] = end
        return x * self.scheduler.data_scale, calls / rows if calls % rows else calls // rows

    def _new(self, x: Tensor, generator: torch.Generator | None) -> Levels:
        """Fill a row for the start of an episode and return its levels."""
        _normal_(x, generator)
        if self.buffer_init == "denoise":
            return (self.spec.num_levels - 1,) * self.spec.horizon
        self._noised_(x, self._start_action, x, self.spec.buffer)
        return self.spec.buffer

    def _continued(
        self, memory: ActionBuffer, i: int, x: Tensor, executed: int, generator: torch.Generator | None
    ) -> Levels:
        """Drop what was executed, append noise, noise the past to its label, and return the row's levels."""
        fresh = memory.advance(i, executed)
        levels = memory.levels[i]
        memory.read([i], x[None])
        if executed:
            _normal_(x[fresh:], generator)
            if self.renoise_prefix and self.spec.first:
                past = x[: self.spec.first]
                noise = _normal_(torch.empty_like(past), generator)
                self._noised_(past, past, noise, levels[: self.spec.first])
        return levels

    def _noised_(self, out: Tensor, clean: Tensor, noise: Tensor, levels: Levels) -> None:
        """Write a clean part of the buffer, noised to levels, to `out` [n, Da], which may be either of them."""
        index = torch.tensor(levels, device=out.device) + 1
        out.copy_(self._alpha[index] * clean + self._sigma[index] * noise)

    def _denoise(
        self,
        starts: list[Levels],
        new: list[bool],
        x: Tensor,
        cond: Any,
        generators: list[torch.Generator | None],
    ) -> tuple[int, list[Levels]]:
        """Run a cycle in place, rows of equal levels together; return calls summed over rows, and end levels."""
        groups: dict[Levels, list[int]] = {}
        for row, start in enumerate(starts):
            groups.setdefault(start, []).append(row)
        calls, ends = 0, list(starts)
        for start, members in groups.items():
            cycle = self._cycle(start)
            calls += len(cycle.table) * len(members)
            if len(groups) == 1:
                self._run(cycle, x, cond, generators)
            else:
                part = x[members]
                self._run(cycle, part, _take(cond, members), [generators[row] for row in members])
                x[members] = part
            for row in members:
                ends[row] = cycle.end
        if self.buffer_init == "denoise":
            for row in range(len(x)):
                if new[row]:
                    ends[row] = self._renoised_tail(x[row], generators[row])
        return calls, ends

    def _run(self, cycle: Cycle, x: Tensor, cond: Any, generators: list[torch.Generator | None]) -> None:
        if len(cycle.table):
            self.loop.run(cycle.table, cond, len(x), _shared(generators), self.films, x=x)

    def _renoised_tail(self, x: Tensor, generator: torch.Generator | None) -> Levels:
        """Noise what follows the first chunk of a full run to the levels at a cycle's end, and return these."""
        end = self.spec.after(self.spec.buffer)
        tail = x[self.spec.executed.stop :]
        if len(tail):
            noise = _normal_(torch.empty_like(tail), generator)
            self._noised_(tail, tail, noise, end[self.spec.executed.stop :])
        return end

    def _cycle(self, start: Levels) -> Cycle:
        """Return what the cycle from one level vector needs; there are at most `period` in regular use."""
        if start not in self._cycles:
            if len(self._cycles) >= MAX_CYCLES:  # cycles cut short lead to ever new levels
                self._cycles.clear()
            levels = torch.tensor(self.spec.cycle(start), dtype=torch.int64).reshape(-1, self.spec.horizon)
            table = self._table.at(levels, self._alpha.device)
            self._cycles[start] = Cycle(table, self.spec.after(start))
        return self._cycles[start]

    @staticmethod
    def _broken(x: Tensor) -> list[int]:
        if bool(x.sum().isfinite()):
            return []
        return torch.nonzero(~x.isfinite().flatten(1).all(dim=1)).flatten().tolist()

    def buffer_state(self) -> dict[str, Tensor]:
        """Return all that a run needs to go on bit for bit: buffer, levels, noise, queues and histories."""
        state = self.memory.state()
        state |= {"since": self.since.clone(), "left": self._left.clone(), "queue": self._queue.clone()}
        state["fresh"] = self._fresh.clone()
        state["generators"] = torch.stack([g.get_state() for g in self.generators])
        return state | {f"history.{name}": value.clone() for name, value in self._history.items()}

    def load_buffer_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state of `buffer_state`, in a policy with the same sizes.

        Raises:
            InputError: When an entry is missing, or shapes or levels do not fit.
        """
        needed = {"actions", "levels", "since", "left", "queue", "fresh", "generators"}
        if missing := sorted(needed - set(state)):
            raise InputError(f"the state lacks {', '.join(missing)}")
        if state["queue"].shape != self._queue.shape:
            raise InputError(
                f"the state holds queues {tuple(state['queue'].shape)}, this policy {tuple(self._queue.shape)}"
            )
        self.memory.load(state)
        self.since, self._left, self._fresh = (state[n].clone() for n in ("since", "left", "fresh"))
        self._queue = state["queue"].clone()
        for generator, value in zip(self.generators, state["generators"], strict=True):
            generator.set_state(value.clone())  # a view with an offset crashes it
        prefix = "history."
        self._history = {n.removeprefix(prefix): t.clone() for n, t in state.items() if n.startswith(prefix)}


def _per_row(generator: Generators, rows: int) -> list[torch.Generator | None]:
    if generator is None or isinstance(generator, torch.Generator):
        return [generator] * rows
    if len(generator) != rows:
        raise InputError(f"need one generator per row: {rows} rows, {len(generator)} generators")
    return list(generator)


def _normal_(out: Tensor, generator: torch.Generator | None) -> Tensor:
    if out.device.type == "cpu":
        return out.normal_(generator=generator)
    return out.copy_(torch.empty(out.shape).normal_(generator=generator))


def _shared(generators: list[torch.Generator | None]) -> Generators:
    """Return one generator for the batch where all rows draw from the same."""
    first = generators[0]
    return first if all(generator is first for generator in generators) else generators


def _take(cond: Any, rows: list[int]) -> Any:
    if isinstance(cond, Tensor):
        return cond[rows]
    if isinstance(cond, Mapping):
        return {name: _take(value, rows) for name, value in cond.items()}
    return type(cond)(_take(value, rows) for value in cond)
