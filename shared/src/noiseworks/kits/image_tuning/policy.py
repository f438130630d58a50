"""A pipeline's denoiser as the policy of its sampling chain: guided predictions, rollouts, log-probabilities.

What the denoiser is conditioned on is asked of the pipeline itself: it is called with the prompts and stopped at its
first denoiser call, whose arguments are kept, one row a prompt. So every family is fed as its pipeline feeds it, and
each prompt is encoded once.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.checks import check_finite
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.diffusers_hosts import (
    DenoiserCall,
    DenoiserHook,
    attach_hook,
    decode_latents,
    prediction_of,
    role_rows,
    sample_generators,
    seeded_latents,
    take_rows,
)
from noiseworks.kits.image_tuning.chain import Chain, chain_of, sampling_scheduler
from noiseworks.kits.image_tuning.options import FAMILIES, Rollout
from noiseworks.kits.image_tuning.steps import ScoredStep
from noiseworks.kits.image_tuning.trajectories import Trajectories, join_trajectories
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_ENCODED_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class Conditions:
    """What the host feeds its denoiser with, beside latents and timesteps.

    Attributes:
        texts: The prompts.
        cond: The denoiser's keyword arguments, one row a prompt.
        uncond: Those of the empty prompt, one row; None without guidance.
        shape: Shape of one sample's latents.
        dtype: Of the denoiser's input.
    """

    texts: tuple[str, ...]
    cond: Mapping[str, Any]
    uncond: Mapping[str, Any] | None
    shape: tuple[int, ...]
    dtype: torch.dtype


class Policy:
    """A pipeline's denoiser as the policy of its sampling chain, on a fixed set of prompts.

    Args:
        pipe: A text-to-image pipeline of the families sd, sdxl, sd3 or flux, on its device; its weights may change.
        prompts: The prompts, without repetition.
        rollout: How it draws.
        call: Further arguments of the pipeline's call, such as `max_sequence_length`.

    Attributes:
        chain: The steps.
        conditions: The encoded prompts.
        calls: Rows that the denoiser has been evaluated on.

    Raises:
        InputError: When there are no prompts or the scheduler does not fit.
        UnsupportedHostError: When the pipeline is of another family.
    """

    def __init__(
        self,
        pipe: "DiffusionPipeline",
        prompts: Sequence[str],
        rollout: Rollout,
        call: Mapping[str, Any] | None = None,
    ) -> None:
        from noiseworks.kits.diffusers_hosts import layout_of

        family = layout_of(pipe).family
        if family not in FAMILIES:
            raise UnsupportedHostError(
                f"a pipeline of family {family!r} cannot be tuned: {', '.join(FAMILIES)} can"
            )
        self.pipe, self.rollout, self.calls = pipe, rollout, 0
        if not prompts or not all(prompt.strip() for prompt in prompts):
            raise InputError("no prompts, or an empty one: give at least one text")
        self.prompts = tuple(dict.fromkeys(prompts))
        capture = _Capture(pipe)
        self.layout, self.denoiser = capture.layout, capture.denoiser
        with _scheduled(pipe, sampling_scheduler(pipe.scheduler)):
            parts = list(self._ask(capture, dict(call or {})))
            self.chain: Chain = chain_of(pipe.scheduler, rollout)
        cond = _joined([part.cond for part in parts], self.layout.shared)
        self.conditions = Conditions(self.prompts, cond, parts[0].uncond, parts[0].shape, parts[0].dtype)

    @torch.no_grad()
    def _ask(self, capture: "_Capture", call: dict[str, Any]) -> Iterator[Conditions]:
        w, size, flux = self.rollout.guidance_scale, self.rollout.size, self.layout.family == "flux"
        if size is not None:
            call |= {"height": size, "width": size}
        for first in range(0, len(self.prompts), _ENCODED_AT_ONCE):
            texts = list(self.prompts[first : first + _ENCODED_AT_ONCE])
            guidance = (
                {"true_cfg_scale": w, "negative_prompt": [""] * len(texts)} if flux else {"guidance_scale": w}
            )
            with attach_hook(capture, "image-tuning"):
                try:
                    self.pipe(texts, num_inference_steps=self.rollout.num_inference_steps, **guidance, **call)
                except _CapturedError as found:
                    yield found.conditions
                else:
                    raise UnsupportedHostError(f"{type(self.pipe).__name__} did not call its denoiser")

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.denoiser.parameters()).device

    @property
    def stored_dtype(self) -> torch.dtype:
        """Type of the latents: float32, or float16 for models in half precision."""
        wide = self.conditions.dtype in (torch.float32, torch.float64)
        return self.conditions.dtype if wide else torch.float16

    @property
    def fingerprint(self) -> str:
        """Hash of the chain and of the denoiser's weights, which stored trajectories have to fit."""
        found = hashlib.sha256(self.chain.fingerprint.encode())
        for name, tensor in self.denoiser.state_dict().items():
            if "lora_" not in name:
                name = name.replace(".base_layer", "")
                found.update(f"{name}{tuple(tensor.shape)}".encode())
                found.update(tensor.flatten()[:32].float().cpu().numpy().tobytes())
        return found.hexdigest()[:16]

    def ids_of(self, prompts: Sequence[str]) -> Tensor:
        """Return the numbers of prompts, int64 [n].

        Raises:
            InputError: When one is not among the policy's.
        """
        known = {text: number for number, text in enumerate(self.prompts)}
        unknown = [prompt for prompt in prompts if prompt not in known]
        if unknown:
            raise InputError(f"{unknown[0]!r} is not among the {len(known)} prompts of this policy")
        return torch.tensor([known[prompt] for prompt in prompts])

    def predict(self, x: Tensor, places: Tensor, ids: Tensor) -> Tensor:
        """Return the guided prediction `u + w (c - u)`, both in one call of the denoiser; w of 1 or less is c.

        Args:
            x: Latents [B, ...].
            places: The step of each sample, int64 [B].
            ids: Its prompt's number, int64 [B].
        """
        found, w = self.conditions, self.rollout.guidance_scale
        kwargs = take_rows(found.cond, ids, len(self.prompts), self.layout.shared)
        inputs = self.chain.network_input(x, places).to(found.dtype)
        timesteps = self.chain.timesteps[places].to(x.device)
        if self.layout.timestep_scale != 1:
            timesteps = timesteps * self.layout.timestep_scale
        guided = found.uncond is not None
        if guided:
            rows = torch.zeros(len(ids), dtype=torch.long)
            uncond = take_rows(found.uncond, rows, 1, self.layout.shared)
            kwargs = _joined([uncond, kwargs], self.layout.shared)
            inputs, timesteps = torch.cat([inputs, inputs]), torch.cat([timesteps, timesteps])
        self.calls += len(inputs)
        output = prediction_of(
            self.denoiser(**{self.layout.sample: inputs}, timestep=timesteps, **kwargs, return_dict=False)
        )
        if not guided:
            return output.float() if output.dtype != torch.float64 else output
        u, c = output.to(torch.promote_types(output.dtype, torch.float32)).chunk(2)
        return u + w * (c - u)

    def step(
        self,
        x: Tensor,
        places: Tensor,
        ids: Tensor,
        *,
        sample: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> ScoredStep:
        """Draw the next latents, or score given ones; the arguments are those of `predict` and `Chain.step`."""
        return self.chain.step(self.predict(x, places, ids), x, places, sample=sample, noise=noise)

    def log_prob(self, trajectories: Trajectories, rows: Tensor, places: Tensor) -> Tensor:
        """Return the log-probability of stored steps under the present weights [n], with gradients.

        Args:
            trajectories: Stored rollouts.
            rows: Which of them, int64 [n].
            places: Which step of each, int64 [n].
        """
        x, sample = (trajectories.latents[rows, places + i].to(self.device) for i in (0, 1))
        return self.step(x, places, trajectories.prompt_ids[rows], sample=sample).log_prob

    @torch.no_grad()
    def log_probs(self, trajectories: Trajectories, rows: Tensor | None = None) -> Tensor:
        """Return the log-probabilities of all stochastic steps of stored rollouts, on the CPU [n, T].

        Args:
            trajectories: Stored rollouts.
            rows: Which of them, by default all.
        """
        rows = torch.arange(len(trajectories)) if rows is None else rows
        places = torch.arange(self.chain.stochastic)
        all_rows, all_places = (grid.flatten() for grid in torch.meshgrid(rows, places, indexing="ij"))
        parts = [
            self.log_prob(trajectories, *part).cpu()
            for part in zip(
                all_rows.split(self.rollout.rollout_batch),
                all_places.split(self.rollout.rollout_batch),
                strict=True,
            )
        ]
        return torch.cat(parts).view(len(rows), len(places)) if parts else torch.zeros(0, len(places))

    def first_latents(self, seeds: Sequence[int]) -> Tensor:
        """Return first latents x_T, one seed a sample."""
        noise = seeded_latents(seeds, self.conditions.shape, self.device)
        return (noise * self.chain.start_scale).to(self.stored_dtype)

    @torch.no_grad()
    def walk(
        self,
        x: Tensor,
        ids: Tensor,
        generators: Sequence[torch.Generator],
        first: int = 0,
        last: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Go through some of the chain's steps.

        Args:
            x: Latents at step `first` [B, ...].
            ids: Prompt numbers, int64 [B].
            generators: Of the steps' noise, one a sample.
            first: The first step.
            last: The step behind the last one, by default the chain's end.

        Returns:
            The latents drawn, on the CPU [B, n, ...], and their log-probabilities [B, n].

        Raises:
            NonFiniteError: When latents are NaN or infinite, naming the step.
        """
        last = len(self.chain) if last is None else last
        latents, log_probs = [], []
        for place in range(first, last):
            noise = None
            if place < self.chain.stochastic:
                noise = torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators]).to(x.device)
            found = self.step(x, torch.full((len(x),), place), ids, noise=noise)
            x = found.sample
            check_finite("the latents", x, place)
            latents.append(x.cpu())
            log_probs.append(found.log_prob.cpu())
        if not latents:
            return x.new_zeros(len(x), 0, *x.shape[1:]).cpu(), torch.zeros(len(x), 0)
        return torch.stack(latents, 1), torch.stack(log_probs, 1)

    def roll_out(self, ids: Tensor, starts: Sequence[int], seeds: Sequence[int]) -> Trajectories:
        """Draw whole trajectories.

        Args:
            ids: Prompt numbers, int64 [B].
            starts: Seeds of the first latents x_T; equal ones start equal.
            seeds: Seeds of the steps' noise.
        """
        parts = []
        for first in range(0, len(ids), self.rollout.rollout_batch):
            rows = slice(first, first + self.rollout.rollout_batch)
            x = self.first_latents(starts[rows])
            latents, log_probs = self.walk(x, ids[rows], sample_generators(seeds[rows]))
            latents = torch.cat([x.cpu()[:, None], latents], 1)
            parts.append(Trajectories(self.prompts, latents, log_probs, ids[rows], torch.tensor(seeds[rows])))
        return join_trajectories(parts)

    def branch_out(
        self, ids: Tensor, starts: Sequence[int], seeds: Sequence[int], branches: int, place: int
    ) -> Trajectories:
        """Draw trees: the steps before `place` once a group, the others once a branch, each with noise of its own.

        Args:
            ids: Prompt numbers, one a group, int64 [G].
            starts: Seeds of the groups' first latents and of the steps before `place`.
            seeds: Seeds of the branches' steps, those of a group in a row [G branches].
            branches: Rollouts of a group.
            place: The first step that branches do not share; 0 shares the first latents alone.

        Returns:
            All rollouts [G branches], those of a group in a row, with what they share repeated.
        """
        parts, count = [], max(1, self.rollout.rollout_batch // branches)
        for first in range(0, len(ids), count):
            own, each = ids[first : first + count], ids[first : first + count].repeat_interleave(branches)
            step_seeds = list(seeds[first * branches : (first + len(own)) * branches])
            x = self.first_latents(starts[first : first + count])
            stem = self.walk(
                x, own, sample_generators([s ^ 1 for s in starts[first : first + count]]), 0, place
            )
            latents, log_probs = (part.repeat_interleave(branches, 0) for part in stem)
            latents = torch.cat([x.cpu().repeat_interleave(branches, 0)[:, None], latents], 1)
            ends = self.walk(latents[:, -1].to(x.device), each, sample_generators(step_seeds), place)
            latents, log_probs = torch.cat([latents, ends[0]], 1), torch.cat([log_probs, ends[1]], 1)
            parts.append(Trajectories(self.prompts, latents, log_probs, each, torch.tensor(step_seeds)))
        return join_trajectories(parts)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images of final latents, on the CPU in float32 [B, 3, H, W] in [0, 1]."""
        size = None if self.rollout.size is None else (self.rollout.size, self.rollout.size)
        parts = latents.split(self.rollout.rollout_batch)
        return torch.cat([decode_latents(self.pipe, p.to(self.device), size).float().cpu() for p in parts])


class _CapturedError(Exception):
    """Ends a pipeline's call when its denoiser's arguments are known."""

    def __init__(self, conditions: Conditions) -> None:
        super().__init__("stopped on purpose")
        self.conditions = conditions


class _Capture(DenoiserHook):
    """Keeps what the denoiser is called with and ends the call."""

    def denoise(self, call: DenoiserCall) -> Any:
        """Read the arguments of both roles; where each has its own call, let the host go on to the second."""
        if self.layout.calls == "contexts":
            rows = torch.arange(call.rows)
            found = take_rows(self._kept(call), rows, call.rows, self.layout.shared)
            guided = (call.run.guidance_scale or 1) > 1
            if call.role == "cond" and guided:
                call.run.state = found
                return (torch.zeros_like(call.sample),)
            cond, uncond = (call.run.state, found) if call.role == "uncond" else (found, None)
            total = call.rows
        else:
            roles = {role: role_rows(call, role) for role in ("cond", "uncond")}
            kept = self._kept(call)
            cond = take_rows(kept, roles["cond"], call.rows, self.layout.shared)
            uncond = kept if len(roles["uncond"]) else None
            total = call.rows
            if uncond is not None:
                uncond = take_rows(uncond, roles["uncond"], call.rows, self.layout.shared)
                total = len(roles["uncond"])
        if uncond is not None:
            uncond = take_rows(uncond, torch.zeros(1, dtype=torch.long), total, self.layout.shared)
        sample = call.sample
        raise _CapturedError(Conditions((), cond, uncond, tuple(sample.shape[1:]), sample.dtype))

    def _kept(self, call: DenoiserCall) -> dict[str, Any]:
        dropped = (self.layout.sample, "timestep", "return_dict")
        return {name: value for name, value in call.kwargs.items() if name not in dropped}


@contextmanager
def _scheduled(pipe: "DiffusionPipeline", scheduler: Any) -> Iterator[None]:
    before = pipe.scheduler
    pipe.scheduler = scheduler
    try:
        yield
    finally:
        pipe.scheduler = before


def _joined(parts: Sequence[Any], shared: Sequence[str]) -> Any:
    """Return nested arguments with the rows of all parts, one behind the other."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts)) if first.ndim else first
    if isinstance(first, Mapping):
        return {
            k: v if k in shared else _joined([part[k] for part in parts], shared) for k, v in first.items()
        }
    return first
