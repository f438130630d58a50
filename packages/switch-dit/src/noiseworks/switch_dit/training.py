"""The kit's recipe with the diffusion prior loss beside the denoising loss."""

from noiseworks.kits.backbones import Recipe, fit_denoiser
from noiseworks.kits.training import Run
from noiseworks.switch_dit.model import SwitchDiT
from torch import Tensor


def fit_switch(
    model: SwitchDiT,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    *,
    run: Run | None = None,
    progress: bool = True,
) -> SwitchDiT:
    """Train a model, and return its average.

    Args:
        model: The model, new or made from a plain DiT.
        images: (n, C, H, W) in [-1, 1].
        labels: (n,).
        recipe: How it is trained.
        run: The open run, None to keep nothing.
        progress: Whether to show a bar.
    """
    extra = (lambda model, t: model.prior_loss(t)) if model.switch.prior_weight else None
    return fit_denoiser(model, images, labels, recipe, run=run, extra_loss=extra, progress=progress)
