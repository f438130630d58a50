"""From a pipeline, a guide and images to experts: the whole transfer in one call."""

from typing import TYPE_CHECKING

from noiseworks.core.errors import InputError
from noiseworks.ppap.diffusers import is_pixel, model_samples, noise_levels, seen_images, timesteps_of
from noiseworks.ppap.experts import Experts
from noiseworks.ppap.guide import Guide
from noiseworks.ppap.options import Adapters, Transfer
from noiseworks.ppap.routing import even_bounds, snr_bounds
from noiseworks.ppap.transfer import ExpertTraining, Images
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def learn(
    pipe: "DiffusionPipeline",
    guide: Guide,
    images: Tensor,
    adapters: Adapters = Adapters(),
    transfer: Transfer = Transfer(),
    *,
    labels: Tensor | None = None,
) -> Experts:
    """Train experts of a guide for a pipeline's noise.

    Args:
        pipe: The pipeline; it is not changed.
        guide: The teacher.
        images: [n, 3, H, W] in [-1, 1], such as `draw_images` of the same pipeline gives: no data are needed.
        adapters: The experts.
        transfer: How they learn.
        labels: True classes [n], to learn from instead of the guide.

    Returns:
        The experts.

    Raises:
        InputError: When images are outside [-1, 1] or of another size, or options do not fit each other.
    """
    return prepared(pipe, guide, images, adapters, transfer, labels).train(progress=False)


def prepared(
    pipe: "DiffusionPipeline",
    guide: Guide,
    images: Tensor,
    adapters: Adapters,
    transfer: Transfer,
    labels: Tensor | None = None,
) -> ExpertTraining:
    """Return a training that has not begun; the arguments are those of `learn`.

    Raises:
        InputError: When images are outside [-1, 1] or of another size, or options do not fit each other.
    """
    if float(images.abs().max()) > 1 + 1e-3:
        raise InputError(f"images must be in [-1, 1], got values up to {float(images.abs().max()):.3g}")
    check_size(pipe, images)
    levels, count = noise_levels(pipe), adapters.experts
    even = adapters.spacing == "even"
    bounds = even_bounds(count, timesteps_of(pipe)) if even else snr_bounds(count, levels[0] ** 2)
    experts = Experts(guide.model, bounds, adapters, transfer.seed)
    samples = None if is_pixel(pipe) else model_samples(pipe, images)
    data = Images(images, levels, samples, lambda x: seen_images(pipe, x), labels)
    return ExpertTraining(experts, guide, data, transfer)


def check_size(pipe: "DiffusionPipeline", images: Tensor) -> None:
    """Refuse images of another size than a pixel pipeline's.

    Raises:
        InputError: Naming both.
    """
    if not is_pixel(pipe):
        return
    size = pipe.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    if tuple(images.shape[2:]) != (height, width):
        raise InputError(
            f"the images are {images.shape[3]}x{images.shape[2]}, the model's are {width}x{height}"
        )
