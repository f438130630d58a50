"""The adapter to diffusers: a hook on the denoiser that looks at the image in the making and changes the prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from noiseworks.black_scholes.mixing import mix, take_condition
from noiseworks.black_scholes.options import Volatility
from noiseworks.black_scholes.policies import BlackScholes, BlendPolicy, Step
from noiseworks.black_scholes.pricing import posterior_sigma
from noiseworks.black_scholes.scorers import Scorer, score
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.diffusers_hosts.conditions import cond_rows, encode_condition, with_condition
from noiseworks.kits.diffusers_hosts.forecasts import (
    decode_latents,
    guided_prediction,
    image_size,
    latents_of,
)
from noiseworks.kits.diffusers_hosts.hooks import DenoiserCall, DenoiserHook, HookHandle, attach_hook
from noiseworks.kits.diffusers_hosts.levels import noise_level, prediction_type_of, to_x0
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

HOOK_NAME = "noiseworks-black-scholes"
STATELESS = ("DDIMScheduler", "DDPMScheduler")


@dataclass(eq=False)
class BlendTrace:
    """What a run decided.

    Attributes:
        concepts: M concepts of each of B samples.
        weights: float64 [B, N, M]; NaN in steps that have not come yet.
        scores: Matches of the forecast after each step, 0 to 100, [B, N, M]; NaN where nothing was scored.
        prices: ln of the price by which each step was conditioned (the price for "released-density"), [B, N, M]; NaN
            where there is none.
        decodes: Forecasts that were decoded and scored.
    """

    concepts: list[list[str]]
    weights: Tensor
    scores: Tensor
    prices: Tensor
    decodes: int = 0

    @property
    def choices(self) -> Tensor:
        """The concept of the largest weight, int64 [B, N]; -1 in steps that have not come."""
        known = self.weights.isfinite().all(-1)
        return torch.where(known, self.weights.nan_to_num().argmax(-1), -1)

    @property
    def shares(self) -> Tensor:
        """How much of the run each concept conditioned, [B, M]."""
        return self.weights.nanmean(1)


@dataclass(eq=False)
class Seen:
    """What the last call of a step left for the forecast, which is made when the next step begins."""

    step: int
    timestep: float
    prediction: Tensor
    latents: Tensor
    level: tuple[float, float]


@dataclass(eq=False)
class BlendedRun:
    """What the hook keeps for one run.

    Attributes:
        others: Conditions of the concepts after the first, as the host encodes them.
        trace: Decisions so far.
        history: Scores so far.
        seen: For the next forecast.
        scored: Step of the latest score.
        sigma: Volatility there.
        weights: Of the current step.
        at: The step that `weights` belong to.
    """

    others: list[dict[str, Any]]
    trace: BlendTrace
    history: list[Tensor] = field(default_factory=list)
    seen: Seen | None = None
    scored: int = 0
    sigma: float = 0.0
    weights: Tensor | None = None
    at: int = -1


class BlendHook(DenoiserHook):
    """Conditions each step on the concept, or the blend of concepts, that a policy chooses.

    Args:
        pipe: The pipeline.
        concepts: Concepts beside the call's own prompt: one list for all samples, or one list a sample.
        policy: The policy.
        scorer: Needed by policies that watch.
        score_every: Steps between two looks.
        forecast: "pre" or "released".
    """

    def __init__(
        self,
        pipe: "DiffusionPipeline",
        concepts: Sequence[Any],
        policy: BlendPolicy,
        scorer: Scorer | None,
        score_every: int,
        forecast: str,
    ) -> None:
        super().__init__(pipe)
        self.concepts, self.policy, self.scorer = concepts, policy, scorer
        self.score_every, self.released = score_every, forecast == "released"
        self.traces: list[BlendTrace] = []

    def begin_run(self, call: DenoiserCall) -> BlendedRun:
        """Encode the concepts once; nothing of another run is left."""
        if self.released and type(call.run.scheduler).__name__ not in STATELESS:
            raise UnsupportedHostError(
                f"the released forecast needs {' or '.join(STATELESS)}, not {type(call.run.scheduler).__name__}"
            )
        own, batch, count = _own_prompts(call), call.run.batch, call.run.num_steps
        rows = self.concepts if isinstance(self.concepts[0], list | tuple) else [self.concepts] * batch
        if batch % len(rows):
            raise InputError(
                f"the batch has {batch} samples, got concepts for {len(rows)}: give one list a sample"
            )
        rows = [list(row) for row in rows for _ in range(batch // len(rows))]
        others = [encode_condition(call, column) for column in zip(*rows, strict=True)]
        names = [[_text(call, one) for one in (first, *row)] for first, row in zip(own, rows, strict=True)]
        empty = torch.full((batch, count, len(names[0])), torch.nan, dtype=torch.float64)
        trace = BlendTrace(names, empty, empty.clone(), empty.clone())
        self.traces.append(trace)
        return BlendedRun(others, trace)

    def report(self) -> BlendTrace:
        """Return the trace of the last run.

        Raises:
            InputError: When there was none.
        """
        if not self.traces:
            raise InputError("no run yet: call the pipeline first")
        return self.traces[-1]

    def denoise(self, call: DenoiserCall) -> Any:
        """Decide where a step begins, condition on what was decided, and note what the host will predict."""
        run: BlendedRun = call.run.state
        if call.role is None and call.run.guided and call.rows != len(self.layout.roles) * call.run.batch:
            return self.evaluate(
                call
            )  # extra passes (SD3's skip-layer guidance) come with the rows of one role
        if run.at != call.run.step:  # second-order solvers come twice in a step; the choice stays
            self._decide(call, run)
        rows = cond_rows(call)
        if len(rows) and not bool((run.weights[:, 0] == 1).all()):
            own = take_condition(call.kwargs, run.others[0], rows)
            call = with_condition(call, mix([own, *run.others], run.weights))
        output = self.evaluate(call)
        if self._looks_after(call.run.step, call.run.num_steps):
            level = noise_level(call.run.scheduler, call.timestep)
            prediction = guided_prediction(call, output)
            run.seen = Seen(call.run.step, call.timestep, prediction, latents_of(call), level)
        return output

    def _looks_after(self, step: int, num_steps: int) -> bool:
        # What follows the last step is the image itself: there is nothing left to decide.
        return self.policy.watches and step % self.score_every == 0 and step + 1 < num_steps

    def _decide(self, call: DenoiserCall, run: BlendedRun) -> None:
        if run.seen is not None:
            self._look(call, run, run.seen)
        history = torch.stack(run.history) if run.history else None
        index = call.run.step
        step = Step(index, call.run.num_steps, run.trace.concepts, history, run.scored, run.sigma)
        run.weights, run.at = self.policy.weights(step), index
        run.trace.weights[:, index] = run.weights
        if isinstance(self.policy, BlackScholes) and history is not None:
            run.trace.prices[:, index] = self.policy.prices(step)

    @torch.no_grad()
    def _look(self, call: DenoiserCall, run: BlendedRun, seen: Seen) -> None:
        """Score the forecast of the step before."""
        latents = latents_of(call) if self.released else seen.latents
        alpha, sigma = seen.level
        kind = prediction_type_of(call.run.scheduler)
        if alpha == 0 and kind == "epsilon":  # pure noise, of which the noise alone is predicted
            run.seen = None
            return
        x0 = to_x0(seen.prediction, latents, alpha, sigma, kind)
        found = score(
            self.scorer, decode_latents(call.run.pipe, x0, image_size(call)).float(), run.trace.concepts
        )
        run.history.append(found)
        run.trace.scores[:, seen.step] = found
        run.trace.decodes += 1
        run.scored, run.seen = seen.step, None
        if isinstance(self.policy, BlackScholes):
            run.sigma = volatility_of(self.policy.pricing.volatility, call, seen)


def volatility_of(kind: Volatility, call: DenoiserCall, seen: Seen) -> float:
    """Return the scheduler's volatility at a step that is over.

    Args:
        kind: See `options.Pricing`.
        call: The next step's call.
        seen: The step.

    Raises:
        UnsupportedHostError: When the scheduler has no posterior.
    """
    table = getattr(call.run.scheduler, "alphas_cumprod", None)
    if table is None or prediction_type_of(call.run.scheduler) == "flow_prediction":
        if kind in ("posterior", "stride"):
            raise UnsupportedHostError(
                f"{type(call.run.scheduler).__name__} has no posterior: use the volatility table or auto"
            )
        return seen.level[1]
    if kind == "table":
        return seen.level[1]
    return posterior_sigma(table, seen.timestep, call.timestep if kind == "stride" else None)


def _own_prompts(call: DenoiserCall) -> list[Any]:
    """Return the prompt of each sample that the pipeline was called with."""
    arguments, batch = call.run.arguments, call.run.batch
    given = arguments.get("class_labels" if call.run.layout.family == "dit" else "prompt")
    if isinstance(given, Tensor):
        given = given.tolist()
    if given is None:
        raise UnsupportedHostError(
            "concepts are blended into a prompt: call the pipeline with prompts as text"
        )
    prompts = [given] if isinstance(given, str | int) else list(given)
    if not prompts or batch % len(prompts):
        raise UnsupportedHostError(f"{len(prompts)} prompts for a batch of {batch}: give one a sample")
    return [prompt for prompt in prompts for _ in range(batch // len(prompts))]


def _text(call: DenoiserCall, concept: str | int) -> str:
    """Return a concept in words: the name of a class label where the pipeline knows it."""
    if isinstance(concept, str):
        return concept
    names = {number: name for name, number in (getattr(call.run.pipe, "labels", None) or {}).items()}
    return names.get(concept, str(concept))


class BlendHandle(HookHandle[BlendHook]):
    """An attached policy: `report` of the last run, `traces` of all, and `detach`. A context manager."""

    @property
    def traces(self) -> list[BlendTrace]:
        """One trace a run so far."""
        return self.hook.traces


def attach(
    pipe: "DiffusionPipeline",
    concepts: Sequence[str] | Sequence[Sequence[str]] | Sequence[int],
    policy: BlendPolicy | None = None,
    *,
    scorer: Scorer | None = None,
    score_every: int = 1,
    forecast: Literal["pre", "released"] = "pre",
) -> BlendHandle:
    """Blend further concepts into the prompts of a pipeline's next runs, until `detach`.

    The prompt that the pipeline is called with is the first concept. Scheduler, negative prompt, LoRA and ControlNet
    stay as they are; a step still costs one call of the denoiser.

    Args:
        pipe: A Stable Diffusion (1, 2, XL, 3), InstructPix2Pix, FLUX, PixArt or DiT pipeline.
        concepts: Concepts beside the prompt: one list for all samples, or one list a sample (class labels for DiT).
        policy: What decides; by default `BlackScholes()`.
        scorer: How well an image matches texts; needed by policies that watch.
        score_every: Steps between two looks at the image in the making.
        forecast: "pre": x0 of the step's own prediction. "released": the released code's, from the latents after the
            step and the prediction before it; DDIM and DDPM only.

    Returns:
        A handle, to be used as a context manager or with `detach()`.

    Raises:
        InputError: When there is no concept, or a policy that watches has no scorer.
        UnsupportedHostError: When the pipeline is of an unknown family or has a feature cache on.
    """
    policy = BlackScholes() if policy is None else policy
    check_number("score_every", score_every, low=1, integer=True)
    check_choice("forecast", forecast, ("pre", "released"))
    rows = [concepts] if concepts and not isinstance(concepts[0], list | tuple) else concepts
    if isinstance(concepts, str) or not concepts or len({len(row) for row in rows}) != 1 or not len(rows[0]):
        raise InputError(
            "a blend needs concepts beside the prompt: a list of texts, or lists of one length a sample"
        )
    if policy.watches and scorer is None:
        raise InputError(f"{type(policy).__name__} watches the image: give a scorer, such as ClipScorer(...)")
    return attach_hook(
        BlendHook(pipe, concepts, policy, scorer, score_every, forecast), HOOK_NAME, BlendHandle
    )
