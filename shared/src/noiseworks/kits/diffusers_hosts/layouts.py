"""The row layout of each pipeline family: what a hook on the denoiser sees when guidance is on.

Most pipelines stack the predictions that guidance needs along the batch axis of one call; FLUX makes two
calls and announces each through `transformer.cache_context`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from noiseworks.core.errors import UnsupportedHostError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import nn


@dataclass(frozen=True)
class Layout:
    """How one pipeline family calls its denoiser.

    Attributes:
        family: "sd", "sdxl", "sd3", "flux", "pixart", "dit" or "instruct-pix2pix".
        component: The pipeline's attribute that holds the denoiser.
        roles: The row blocks of a guided call in their order, each of "cond", "image" (image but no text) and
            "uncond". With `calls == "contexts"`, the order of the calls.
        calls: "rows" when one call holds all roles along the batch axis, "contexts" when each role has its
            own call inside `cache_context(role)`.
        sample: Name of the argument that holds the noisy latents (also the first positional argument).
        shared: Keyword arguments without a batch axis, which are never sliced.
        timestep_scale: The denoiser's `timestep` divided by the scheduler's.
    """

    family: str
    component: Literal["unet", "transformer"]
    roles: tuple[str, ...]
    calls: Literal["rows", "contexts"] = "rows"
    sample: str = "sample"
    shared: tuple[str, ...] = ()
    timestep_scale: float = 1.0

    @property
    def chain(self) -> tuple[str, ...]:
        """The roles from the most conditioned to the least: "cond", ("image",) "uncond"."""
        return tuple(role for role in ("cond", "image", "uncond") if role in self.roles)


SD = Layout("sd", "unet", ("uncond", "cond"))
SDXL = Layout("sdxl", "unet", ("uncond", "cond"))
SD3 = Layout("sd3", "transformer", ("uncond", "cond"), sample="hidden_states")
PIXART = Layout("pixart", "transformer", ("uncond", "cond"), sample="hidden_states")
DIT = Layout("dit", "transformer", ("cond", "uncond"), sample="hidden_states")
INSTRUCT_PIX2PIX = Layout("instruct-pix2pix", "unet", ("cond", "image", "uncond"))
FLUX = Layout(
    "flux",
    "transformer",
    ("cond", "uncond"),
    calls="contexts",
    sample="hidden_states",
    shared=("txt_ids", "img_ids"),
    timestep_scale=1e-3,
)

LAYOUTS = {
    "StableDiffusionPipeline": SD,
    "StableDiffusionImg2ImgPipeline": SD,
    "StableDiffusionInpaintPipeline": SD,
    "StableDiffusionControlNetPipeline": SD,
    "StableDiffusionControlNetImg2ImgPipeline": SD,
    "StableDiffusionControlNetInpaintPipeline": SD,
    "StableDiffusionAdapterPipeline": SD,
    "StableDiffusionXLPipeline": SDXL,
    "StableDiffusionXLImg2ImgPipeline": SDXL,
    "StableDiffusionXLInpaintPipeline": SDXL,
    "StableDiffusionXLControlNetPipeline": SDXL,
    "StableDiffusionXLControlNetImg2ImgPipeline": SDXL,
    "StableDiffusionXLAdapterPipeline": SDXL,
    "StableDiffusion3Pipeline": SD3,
    "StableDiffusion3Img2ImgPipeline": SD3,
    "StableDiffusion3InpaintPipeline": SD3,
    "FluxPipeline": FLUX,
    "PixArtAlphaPipeline": PIXART,
    "PixArtSigmaPipeline": PIXART,
    "DiTPipeline": DIT,
    "StableDiffusionInstructPix2PixPipeline": INSTRUCT_PIX2PIX,
}


def layout_of(pipe: "DiffusionPipeline") -> Layout:
    """Return the row layout of a pipeline, also of a subclass of a known pipeline.

    Raises:
        UnsupportedHostError: When the pipeline's class is of no known family.
    """
    for cls in type(pipe).__mro__:
        if cls.__name__ in LAYOUTS:
            return LAYOUTS[cls.__name__]
    known = ", ".join(sorted({layout.family for layout in LAYOUTS.values()}))
    raise UnsupportedHostError(f"{type(pipe).__name__} is not supported; supported families: {known}")


def denoiser_of(pipe: "DiffusionPipeline") -> "nn.Module":
    """Return the pipeline's UNet or transformer.

    Raises:
        UnsupportedHostError: When the pipeline's class is of no known family, or it was loaded without one.
    """
    name = layout_of(pipe).component
    denoiser = getattr(pipe, name, None)
    if not callable(getattr(denoiser, "forward", None)):
        raise UnsupportedHostError(f"this {type(pipe).__name__} has no {name}: load the pipeline with it")
    return denoiser
