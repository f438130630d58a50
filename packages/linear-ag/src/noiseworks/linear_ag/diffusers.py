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
    attach_hook,
    denoiser_of,
    detach_hook,
    latent_channels_of,
)
from noiseworks.kits.diffusers_hosts.layouts import layout_of
from noiseworks.kits.diffusers_hosts.levels import prediction_type_of
from noiseworks.kits.diffusers_hosts.rows import prediction_of, replace_prediction, scatter_rows
from noiseworks.linear_ag.empty_prompt import check_extras, empty_condition, with_condition
from noiseworks.linear_ag.guidance import (
    Action,
    GuidanceState,
    evaluations,
    fill,
    measure,
    measured,
    perpendicular_negative,
    required,
    strengthen,
    uncond_zero,
)
from noiseworks.linear_ag.policies import GuidancePolicy, RunSettings
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

HOOK_NAME = "noiseworks-linear-ag"

Recorder = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class GuidanceReport:
    """What a run did.

    Attributes:
        gamma: Similarity per step and sample, `[T][B]` (of the first pair of roles); None where not measured.
        actions: One text of digits a sample, as in `Action`.
        nfe: Network evaluations of each sample.
    """

    gamma: list[list[float | None]]
    actions: list[str]
    nfe: list[int]

    @property
    def mean_nfe(self) -> float:
        """Mean network evaluations a sample."""
        return sum(self.nfe) / len(self.nfe)

    @classmethod
    def of(cls, state: GuidanceState) -> "GuidanceReport":
        """Return the report of a run's state."""
        rows = [[None if g != g else g for g in row] for row in state.gamma[..., 0].tolist()]
        actions = ["".join(str(a) for a in column if a >= 0) for column in state.actions.T.tolist()]
        return cls(rows, actions, state.nfe.tolist())


def check_host(pipe: "DiffusionPipeline", policy: GuidancePolicy) -> None:
    """Refuse a pipeline whose guidance cannot be followed.

    Raises:
        InputError: When the policy's space has no meaning for the model.
        UnsupportedHostError: When guidance is distilled into the model, so that no second pass exists, or the
            host cannot take the policy's perpendicular negative prompt or uncond-zero.
    """
    check_extras(layout_of(pipe), *policy.extras)
    if denoiser_of(pipe).config.get("time_cond_proj_dim") is not None:
        raise UnsupportedHostError("guidance is distilled into this UNet: there is no second pass to save")
    if policy.space == "x_minus_eps" and prediction_type_of(pipe.scheduler) == "flow_prediction":
        raise InputError('space "x_minus_eps" has no meaning for a flow model: use "x0" or "auto"')


class GuidanceHook(DenoiserHook):
    """Carries out a guidance policy inside the denoiser's calls.

    Args:
        pipe: The pipeline.
        policy: The policy.
        row_multiple: Row counts are padded to a multiple of this, for compiled models that dislike many
            shapes.
        record: Called at each guided step with (k, evaluated predictions, predictions handed to the host),
            both `[R, B, ...]` in chain order.
        shadow: Evaluate everything, whatever the policy skips; for fitting.
    """

    def __init__(
        self,
        pipe: "DiffusionPipeline",
        policy: GuidancePolicy,
        row_multiple: int = 1,
        record: Recorder | None = None,
        shadow: bool = False,
    ):
        super().__init__(pipe)
        self.policy, self.row_multiple, self.record, self.shadow = policy, row_multiple, record, shadow
        self.states: list[GuidanceState] = []
        self.channels = latent_channels_of(pipe) if self.layout.calls == "rows" else None
        self.order = [self.layout.roles.index(role) for role in self.layout.chain]
        self._state: GuidanceState | None = None
        self._memory: Tensor | None = None
        self._difference: Tensor | None = None
        self._cond_output: Any = None
        self._empty: dict[str, Any] | None = None

    def begin_run(self, call: DenoiserCall) -> None:
        """Start a new record and forget all predictions."""
        self._state = GuidanceState.empty(call.run.num_steps, call.run.batch, len(self.order) - 1)
        self._memory = self._difference = self._cond_output = None
        self.level(call)  # refuses a scheduler without a known noise level before any work
        if call.run.guided:
            self._begin_guided(call)

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

    def _begin_guided(self, call: DenoiserCall) -> None:
        self.states.append(self._state)
        self.policy.check_run(run_settings(self, call))
        if self.policy.extras[0]:
            self._empty = empty_condition(self.pipe, call)

    def _decide(self, call: DenoiserCall) -> Tensor:
        step, state = call.run.step, self._state
        # A second-order solver comes twice in a step; the action stays.
        if bool((state.actions[step] < 0).all()):
            state.actions[step] = self.policy.decide(step, state)
        return state.actions[step]

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
        self._cond_output = self.evaluate(call)
        return self._cond_output

    def _uncond_call(self, call: DenoiserCall) -> Any:
        if self._cond_output is None:
            raise UnsupportedHostError(
                f"{type(self.pipe).__name__} called uncond before cond: unknown layout"
            )
        if not any(state is self._state for state in self.states):
            self._begin_guided(call)
        actions, output = self._decide(call), self._cond_output
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
        step, state = call.run.step, self._state
        filled = fill(predictions, actions, self._estimate(step, actions, predictions), self._difference)
        strength = self.policy.strength(step)
        handed = filled if strength == 1.0 else strengthen(filled, strength)
        perp_neg, zero_scale = self.policy.extras
        if perp_neg:
            handed = self._against_empty(call, actions, handed, perp_neg)
        if zero_scale:
            handed = self._centred(call, sample, actions, handed, zero_scale)
        state.nfe += evaluations(actions, len(self.order), perp_neg > 0)
        self._measure(call, sample, actions, filled)
        self._remember(step, actions, filled)
        if self.record is not None:
            self.record(step, predictions, handed)
        untouched = strength == 1.0 and not perp_neg and bool((actions == Action.CFG).all())
        return None if untouched else handed

    def _against_empty(
        self, call: DenoiserCall, actions: Tensor, predictions: Tensor, weight: float
    ) -> Tensor:
        """Return guided rows as (e_c less the perpendicular negative, e_0), for the host's own formula."""
        guided = (actions == Action.CFG).nonzero().flatten()
        if not len(guided):
            return predictions
        rows = guided + self.layout.roles.index("uncond") * call.run.batch
        empty = prediction_of(self.evaluate(with_condition(call, rows, self.layout, self._empty)))
        guided, handed = guided.to(predictions.device), predictions.clone()
        latents = slice(self.channels)  # a learned variance behind them has no part in guidance
        cond, negative = predictions[:, guided, latents]
        handed[0, guided, latents] = perpendicular_negative(cond, negative, empty[:, latents], weight)
        handed[-1, guided] = empty
        return handed

    def _centred(
        self, call: DenoiserCall, sample: Tensor, actions: Tensor, predictions: Tensor, scale: float
    ) -> Tensor:
        """Return the predictions with uncond-zero in every place of the rows without guidance."""
        rows = (actions == Action.COND).nonzero().flatten().to(predictions.device)
        if not len(rows):
            return predictions
        latents, handed = slice(self.channels), predictions.clone()
        moved = uncond_zero(predictions[0, rows, latents], sample[rows, latents], scale, self.level(call))
        handed[:, rows, latents] = moved
        return handed

    def _measure(self, call: DenoiserCall, sample: Tensor, actions: Tensor, filled: Tensor) -> None:
        valid = measured(actions, len(self.order))
        if not bool(valid.any()):
            return
        if self.channels is not None:
            sample, filled = sample[:, : self.channels], filled[:, :, : self.channels]
        gamma = measure(filled, sample, self.policy.space, self.level(call)).double().cpu()
        if not bool(gamma[valid].isfinite().all()):
            raise NonFiniteError(f"the denoiser's prediction is not finite at step {call.run.step}")
        self._state.gamma[call.run.step] = torch.where(valid, gamma, float("nan"))

    def _estimate(self, step: int, actions: Tensor, predictions: Tensor) -> Tensor | None:
        """Return the regressed unconditional prediction where a row needs it; keep the conditional one."""
        length = self.policy.history
        if step >= length:
            return None
        if self._memory is None:
            self._memory = predictions.new_zeros(2, length, *predictions.shape[1:])
        self._memory[0, step] = predictions[0]
        if not bool((actions == Action.LINEAR).any()):
            return None
        return self.policy.estimate(step, self._memory[0, : step + 1], self._memory[1, :step])

    def _remember(self, step: int, actions: Tensor, filled: Tensor) -> None:
        if self._memory is not None and step < self.policy.history:
            self._memory[1, step] = filled[-1]
        if self.policy.reuses:
            fresh = (actions == Action.CFG).to(filled.device)
            if self._difference is None:
                self._difference = torch.zeros_like(filled)
            self._difference[:, fresh] = (filled[0] - filled)[:, fresh]


def run_settings(hook: GuidanceHook, call: DenoiserCall) -> RunSettings:
    """Return what a policy may depend on, read at a guided call of a run."""
    denoiser, scheduler = denoiser_of(hook.pipe), hook.pipe.scheduler
    config = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    row = 0 if call.role else hook.layout.roles.index("uncond") * call.run.batch
    embedding = call.kwargs.get("encoder_hidden_states")
    weights = next(denoiser.parameters()).detach()
    return RunSettings(
        num_steps=call.run.num_steps,
        guidance_scale=None if call.role else getattr(hook.pipe, "_guidance_scale", None),
        scheduler=f"{type(scheduler).__name__} {json.dumps(config, sort_keys=True, default=str)}",
        model=f"{type(denoiser).__name__} with {sum(p.numel() for p in denoiser.parameters())} parameters",
        checksum=float(weights.float().abs().mean()),
        sample_shape=tuple(call.sample.shape[1:]),
        uncond=None if embedding is None else embedding[row].detach().float().mean(dim=0).cpu(),
    )


class GuidanceHandle:
    """An attached policy: reports, counters, and `detach`. A context manager that detaches at its end."""

    def __init__(self, pipe: "DiffusionPipeline", hook: GuidanceHook):
        self._pipe, self._hook = pipe, hook

    def __enter__(self) -> "GuidanceHandle":
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Take the policy off; the pipeline is then bit for bit what it was before."""
        detach_hook(self._pipe, HOOK_NAME)

    @property
    def policy(self) -> GuidancePolicy:
        """The attached policy."""
        return self._hook.policy

    @property
    def states(self) -> list[GuidanceState]:
        """The record of each guided run so far."""
        return self._hook.states

    @property
    def reports(self) -> list[GuidanceReport]:
        """One report a guided run so far."""
        return [GuidanceReport.of(state) for state in self._hook.states]

    @property
    def report(self) -> GuidanceReport:
        """The report of the last guided run.

        Raises:
            InputError: When no guided run has happened (guidance_scale <= 1, or no run at all).
        """
        if not self._hook.states:
            raise InputError("no guided run yet: call the pipeline with guidance_scale above 1 first")
        return GuidanceReport.of(self._hook.states[-1])

    @property
    def rows(self) -> list[int]:
        """Batch rows of each forward pass of the denoiser so far."""
        return self._hook.counters.rows


def attach(pipe: "DiffusionPipeline", policy: GuidancePolicy, *, row_multiple: int = 1) -> GuidanceHandle:
    """Attach a guidance policy to a pipeline: its next runs follow it until `detach`.

    The user goes on calling the pipeline as before, with guidance on. Runs without guidance pass through.

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
    attach_hook(pipe, hook, HOOK_NAME)
    return GuidanceHandle(pipe, hook)
