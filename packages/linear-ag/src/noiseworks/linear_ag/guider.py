"""Adaptive Guidance as a guider of Modular Diffusers.

Guiders are marked experimental in diffusers; this module is the only one that depends on them. A guider
decides for the whole batch; attach `AdaptiveGuidance` to an ordinary pipeline for decisions per sample.
"""

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from noiseworks.core.checks import check_number
from noiseworks.linear_ag.guidance import cosine


class AdaptiveClassifierFreeGuidance(ClassifierFreeGuidance):
    """Classifier-free guidance that drops the unconditional pass once both predictions agree.

    Similarity is the cosine of x_t - pred for noise-predicting models and of x_t - sigma pred for flow
    models, where sigma = timestep / 1000, since a flow model's timestep is its noise level.

    Args:
        guidance_scale: s.
        threshold: gamma-bar; above 1 means never.
        min_step: No convergence before this step.
        flow: Whether the model predicts a flow (SD3, FLUX) and not the noise.
        guidance_rescale: As in `ClassifierFreeGuidance`.
        use_original_formulation: As in `ClassifierFreeGuidance`.
        start: Fraction of the steps after which guidance starts.
        stop: Fraction of the steps after which guidance stops.
        enabled: Whether guidance is on.

    Raises:
        InputError: When threshold or min_step is out of range.
    """

    @register_to_config
    def __init__(
        self,
        guidance_scale: float = 7.5,
        threshold: float = 0.99,
        min_step: int = 0,
        flow: bool = False,
        guidance_rescale: float = 0.0,
        use_original_formulation: bool = False,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ):
        check_number("threshold", threshold, low=-1.0)
        check_number("min_step", min_step, low=0, integer=True)
        super().__init__(guidance_scale, guidance_rescale, use_original_formulation, start, stop, enabled)
        self.threshold, self.min_step, self.flow = threshold, min_step, flow
        self.gamma: list[float] = []
        self._converged = False
        self._sample: torch.Tensor | None = None
        self._watch: torch.utils.hooks.RemovableHandle | None = None

    def prepare_models(self, denoiser: torch.nn.Module) -> None:
        """Watch the denoiser's input x_t, which a guider is not given otherwise."""
        super().prepare_models(denoiser)
        self._watch = denoiser.register_forward_pre_hook(self._see, with_kwargs=True)

    def cleanup_models(self, denoiser: torch.nn.Module) -> None:
        """Stop watching."""
        self._watch.remove()
        super().cleanup_models(denoiser)

    def forward(self, pred_cond: torch.Tensor, pred_uncond: torch.Tensor | None = None) -> GuiderOutput:
        """Combine the predictions, measure their similarity and decide about the following steps.

        Args:
            pred_cond: `[B, ...]`.
            pred_uncond: `[B, ...]`, or None once converged.
        """
        output = super().forward(pred_cond, pred_uncond)
        step, last = self._step, self._num_inference_steps - 1
        if step == 0:
            self.gamma = []
        if pred_uncond is not None:
            factor = float(self._timestep.flatten()[0]) / 1000.0 if self.flow else 1.0
            vectors = (self._sample - factor * pred for pred in (pred_cond, pred_uncond))
            gamma = float(cosine(*vectors).min())
            self.gamma.append(gamma)
            self._converged = self._converged or (step >= self.min_step and gamma >= self.threshold)
        if step == last:
            # Text encoding of the next run asks for the number of conditions before any step has been set.
            self._step = self._num_inference_steps = None
            self._converged = False
        return output

    def _is_cfg_enabled(self) -> bool:
        return super()._is_cfg_enabled() and not self._converged

    def _see(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        self._sample = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
