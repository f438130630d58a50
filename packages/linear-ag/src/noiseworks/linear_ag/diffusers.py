"""The adapter to diffusers: a hook on the denoiser that skips, replaces and records predictions."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError, NonFiniteError, UnsupportedHostError
from noiseworks.kits.diffusers_hosts.hooks import (
    DenoiserCall,
    DenoiserHook,
    HookHandle,
    attach_hook,
    latent_channels_of,
)
from noiseworks.kits.diffusers_hosts.layouts import denoiser_of
from noiseworks.kits.diffusers_hosts.levels import prediction_type_of
from noiseworks.kits.diffusers_hosts.rows import prediction_of, replace_prediction, scatter_rows
from noiseworks.linear_ag.guidance import (
    Action,
    GuidanceState,
    fill,
    measure,
    measured,
    required,
    strengthen,
)
from noiseworks.linear_ag.policies import GuidancePolicy, RunSettings
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

HOOK_NAME = "noiseworks-linear-ag"


@dataclass(frozen=True)
class GuidanceReport:
    """What a run did.

    Attributes:
        gamma: Similarity per step and sample, `[T][B]` (of the first pair of roles); None where not measured.
        actions: One text of digits a sample, as in `Action`.
        nfe: Network evaluations of each sample.
        full_nfe: What a sample costs with guidance at every call of the solver.
    """

    gamma: list[list[float | None]]
    actions: list[str]
    nfe: list[int]
    full_nfe: int

    @property
    def mean_nfe(self) -> float:
        """Mean network evaluations a sample."""
        return sum(self.nfe) / len(self.nfe)

    @property
    def of_full_guidance(self) -> float:
        """Mean network evaluations as a share of full guidance's."""
        return self.mean_nfe / self.full_nfe

    @classmethod
    def of(cls, state: GuidanceState) -> "GuidanceReport":
        """Return the report of a run's state."""
        rows = [[None if g != g else g for g in row] for row in state.gamma[..., 0].tolist()]
        actions = ["".join(str(a) for a in column if a >= 0) for column in state.actions.T.tolist()]
        return cls(rows, actions, state.nfe.tolist(), state.full_nfe)


def check_host(pipe: "DiffusionPipeline", policy: GuidancePolicy) -> None:
    """Refuse a pipeline whose guidance cannot be followed.

    Raises:
        InputError: When the policy's space has no meaning for the model.
        UnsupportedHostError: When guidance is distilled into the model, so that no second pass exists.
    """
    if denoiser_of(pipe).config.get("time_cond_proj_dim") is not None:
        raise UnsupportedHostError("guidance is distilled into this UNet: there is no second pass to save")
    if policy.space == "x_minus_eps" and prediction_type_of(pipe.scheduler) == "flow_prediction":
        raise InputError('space "x_minus_eps" has no meaning for a flow model: use "x0" or "auto"')


@dataclass(eq=False)
class GuidedRun:
    """What the hook keeps for one run.

    Attributes:
        record: Similarities, actions and evaluations so far.
        begun: Whether the run is known to be guided.
        memory: Conditional and unconditional predictions of the steps that LinearAG regresses on,
            `[2, history, B, ...]`.
        difference: e_c - e_r of each role r at the last guided step, `[R, B, ...]`.
    """

    record: GuidanceState
    begun: bool = False
    memory: Tensor | None = None
    difference: Tensor | None = None


Recorder = Callable[[DenoiserCall, Tensor, Tensor], None]


class GuidanceHook(DenoiserHook):
    """Carries out a guidance policy inside the denoiser's calls.

    Args:
        pipe: The pipeline.
        policy: The policy.
        row_multiple: Row counts are padded to a multiple of this, for compiled models that dislike many
            shapes.
        observe: Called at each guided step with (call, evaluated predictions, predictions handed to the
            host), both `[R, B, ...]` in chain order.
        shadow: Evaluate everything, whatever the policy skips; for fitting.
    """

    batch_rows = "drops"

    def __init__(
        self,
        pipe: "DiffusionPipeline",
        policy: GuidancePolicy,
        row_multiple: int = 1,
        observe: Recorder | None = None,
        shadow: bool = False,
    ):
        super().__init__(pipe)
        self.policy, self.row_multiple, self.observe, self.shadow = policy, row_multiple, observe, shadow
        self.states: list[GuidanceState] = []
        self.last: GuidanceState | None = None
        self.channels = latent_channels_of(pipe) if self.layout.calls == "rows" else None
        self.order = [self.layout.roles.index(role) for role in self.layout.chain]

    def begin_run(self, call: DenoiserCall) -> GuidedRun:
        """Start a new record; nothing of another run is left."""
        record = GuidanceState.empty(call.run.num_steps, call.run.batch, len(self.order) - 1)
        self.last, run = None, GuidedRun(record)
        self.level(call)  # refuses a scheduler without a known noise level before any work
        if call.run.guided:
            self._begin_guided(call, run)
        return run

    def report(self) -> GuidanceReport:
        """Return the report of the last run.

        Raises:
            InputError: When there was none, or it had no guidance.
        """
        if self.last is None:
            raise InputError("no guided run yet: call the pipeline with guidance_scale above 1 first")
        return GuidanceReport.of(self.last)

    def denoise(self, call: DenoiserCall) -> Any:
        """Evaluate what the policy asks for and hand all predictions to the host."""
        if call.role == "cond":
            return self._cond_call(call)
        if call.role == "uncond":
            return self._uncond_call(call)
        # Extra passes (SD3's skip-layer guidance) come with the rows of one role.
        if not call.run.guided or call.rows != len(self.order) * call.run.batch:
            return self.evaluate(call)
        actions = self._decide(call)
        need = required(actions, len(self.order))
        output, predictions = self._predict(call, need)
        filled = self._finish(call, call.sample[: call.run.batch], actions, predictions)
        if filled is None:
            return output
        back = torch.empty_like(filled)
        back[self.order] = filled
        return replace_prediction(output, back.flatten(0, 1))

    def _begin_guided(self, call: DenoiserCall, run: GuidedRun) -> None:
        self.policy.check_run(run_settings(self, call))
        run.begun, self.last = True, run.record
        self.states.append(run.record)

    def _decide(self, call: DenoiserCall) -> Tensor:
        step, record = call.run.step, call.run.state.record
        # A second-order solver comes twice in a step; the action stays.
        if bool((record.actions[step] < 0).all()):
            record.actions[step] = self.policy.decide(step, record)
        return record.actions[step]

    def _predict(self, call: DenoiserCall, need: Tensor) -> tuple[Any, Tensor]:
        """Return the host's output object and the predictions `[R, B, ...]` in chain order."""
        wanted = torch.ones_like(need) if self.shadow else need
        back = torch.empty_like(wanted)
        back[self.order] = wanted
        output, rows = self._evaluate_rows(call, back.flatten())
        return output, rows.unflatten(0, (len(self.order), -1))[self.order]

    def _evaluate_rows(self, call: DenoiserCall, wanted: Tensor) -> tuple[Any, Tensor]:
        """Run the denoiser on the wanted rows, bool `[rows]`; predictions of the others are zeros."""
        if bool(wanted.all()):
            output = self.evaluate(call)
            return output, prediction_of(output)
        rows = wanted.nonzero().flatten()
        padding = -len(rows) % self.row_multiple
        output = self.evaluate(call, torch.cat([rows, rows[-1:].expand(padding)]))
        return output, scatter_rows(prediction_of(output)[: len(rows)], rows, call.rows)

    def _cond_call(self, call: DenoiserCall) -> Any:
        if bool((self._decide(call) == Action.UNCOND).any()):
            raise InputError("this host asks for cond first, so no step can be unconditional")
        return self.evaluate(call)

    def _uncond_call(self, call: DenoiserCall) -> Any:
        output = call.run.cond_output
        if output is None:
            raise UnsupportedHostError(
                f"{type(call.run.pipe).__name__} called uncond before cond: unknown layout"
            )
        if not call.run.state.begun:
            self._begin_guided(call, call.run.state)
        actions = self._decide(call)
        cond = prediction_of(output)
        wanted = torch.ones(call.rows, dtype=torch.bool) if self.shadow else actions == Action.CFG
        uncond = torch.zeros_like(cond)
        if bool(wanted.any()):
            output, uncond = self._evaluate_rows(call, wanted)
        filled = self._finish(call, call.sample, actions, torch.stack([cond, uncond]))
        return output if filled is None else replace_prediction(output, filled[-1])

    def _finish(
        self, call: DenoiserCall, sample: Tensor, actions: Tensor, predictions: Tensor
    ) -> Tensor | None:
        """Measure, remember and replace; returns None when the host's own predictions stand."""
        run, step = call.run.state, call.run.step
        estimate = self._estimate(run, step, actions, predictions)
        filled = fill(predictions, actions, estimate, self._kept(run, step))
        strength = self.policy.strength(step)
        handed = filled if strength == 1.0 else strengthen(filled, strength)
        if estimate is not None:
            call.run.check_finite(handed)
        run.record.nfe += required(actions, len(self.order)).sum(dim=0)
        run.record.full_nfe += len(self.order)
        self._measure(call, sample, actions, filled)
        self._remember(run, step, actions, filled)
        if self.observe is not None:
            self.observe(call, predictions, handed)
        return None if strength == 1.0 and bool((actions == Action.CFG).all()) else handed

    def _measure(self, call: DenoiserCall, sample: Tensor, actions: Tensor, filled: Tensor) -> None:
        valid = measured(actions, len(self.order))
        if not bool(valid.any()):
            return
        if self.channels is not None:
            sample, filled = sample[:, : self.channels], filled[:, :, : self.channels]
        gamma = measure(filled, sample, self.policy.space, self.level(call)).double().cpu()
        if not bool(gamma[valid].isfinite().all()):
            raise NonFiniteError(f"the denoiser's prediction is not finite at step {call.run.step}")
        call.run.state.record.gamma[call.run.step] = torch.where(valid, gamma, float("nan"))

    def _estimate(self, run: GuidedRun, step: int, actions: Tensor, predictions: Tensor) -> Tensor | None:
        """Return the regressed unconditional prediction where a row needs it; keep the conditional one."""
        length = self.policy.history
        if step >= length:
            return None
        if run.memory is None:
            run.memory = predictions.new_zeros(2, length, *predictions.shape[1:])
        run.memory[0, step] = predictions[0]
        if not bool((actions == Action.LINEAR).any()):
            return None
        return self.policy.estimate(step, run.memory[0, : step + 1], run.memory[1, :step])

    def _kept(self, run: GuidedRun, step: int) -> Tensor | None:
        """Return each row's last measured difference, faded by the steps since."""
        if run.difference is None or self.policy.retention == 1.0:
            return run.difference
        age = run.record.since_guided(step).to(run.difference.device)
        faded = (self.policy.retention**age).to(run.difference.dtype)
        return run.difference * faded.reshape(1, -1, *[1] * (run.difference.ndim - 2))

    def _remember(self, run: GuidedRun, step: int, actions: Tensor, filled: Tensor) -> None:
        if run.memory is not None and step < self.policy.history:
            run.memory[1, step] = filled[-1]
        if self.policy.reuses:
            fresh = (actions == Action.CFG).to(filled.device)
            if run.difference is None:
                run.difference = torch.zeros_like(filled)
            run.difference[:, fresh] = (filled[0] - filled)[:, fresh]


def run_settings(hook: GuidanceHook, call: DenoiserCall) -> RunSettings:
    """Return what a policy may depend on, read at a guided call of a run."""
    denoiser, scheduler = hook.denoiser, call.run.scheduler
    config = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    row = 0 if call.role else hook.layout.roles.index("uncond") * call.run.batch
    embedding = call.kwargs.get("encoder_hidden_states")
    weights = next(denoiser.parameters()).detach()
    return RunSettings(
        num_steps=call.run.num_steps,
        guidance_scale=None if call.role else getattr(call.run.pipe, "_guidance_scale", None),
        scheduler=f"{type(scheduler).__name__} {json.dumps(config, sort_keys=True, default=str)}",
        model=f"{type(denoiser).__name__} with {sum(p.numel() for p in denoiser.parameters())} parameters",
        checksum=float(weights.float().abs().mean()),
        sample_shape=tuple(call.sample.shape[1:]),
        uncond=None if embedding is None else embedding[row].detach().float().mean(dim=0).cpu(),
    )


class GuidanceHandle(HookHandle[GuidanceHook]):
    """An attached policy: `report` of the last run, counters, and `detach`. A context manager."""

    @property
    def policy(self) -> GuidancePolicy:
        """The attached policy."""
        return self.hook.policy

    @property
    def states(self) -> list[GuidanceState]:
        """The record of each guided run so far."""
        return self.hook.states

    @property
    def reports(self) -> list[GuidanceReport]:
        """One report a guided run so far."""
        return [GuidanceReport.of(state) for state in self.hook.states]


def attach(pipe: "DiffusionPipeline", policy: GuidancePolicy, *, row_multiple: int = 1) -> GuidanceHandle:
    """Attach a guidance policy to a pipeline's denoiser: its next runs follow it until `detach`.

    The user goes on calling the pipeline as before, with guidance on. Runs without guidance pass through.
    Pipelines that share the denoiser, such as those made by `from_pipe`, follow the policy too, each over
    its own steps.

    Args:
        pipe: A Stable Diffusion (1, 2, XL, 3), InstructPix2Pix, PixArt, DiT or FLUX (true CFG) pipeline.
        policy: The policy.
        row_multiple: Pad row counts to a multiple of this, for compiled models.

    Returns:
        A handle, to be used as a context manager or with `detach()`.

    Raises:
        InputError: When a policy is attached already or does not fit the model.
        UnsupportedHostError: When the pipeline is of an unknown family, distilled, or has a feature cache on.
    """
    if not isinstance(policy, GuidancePolicy):
        raise InputError(f"policy must be a GuidancePolicy such as AdaptiveGuidance(), got {policy!r}")
    check_number("row_multiple", row_multiple, low=1, integer=True)
    hook = GuidanceHook(pipe, policy, row_multiple)
    check_host(pipe, policy)
    return attach_hook(hook, HOOK_NAME, GuidanceHandle)
