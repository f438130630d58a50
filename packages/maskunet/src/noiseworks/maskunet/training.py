"""Training masks with the plain denoising loss (section 3.3): only generators move, and their average is kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning as L  # noqa: TID253
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.image_tuning.denoising import DenoisingError
from noiseworks.kits.image_tuning.options import Rollout
from noiseworks.kits.image_tuning.policy import Policy
from noiseworks.kits.training import Average, Batches, Rows, Run, fit, warm_decay
from noiseworks.maskunet.masking import MaskHandle, MaskNet
from noiseworks.maskunet.options import MaskConfig, Training
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_LOOKED_AT = 3  # steps after which every generator must have got a gradient


@dataclass(frozen=True, eq=False)
class Examples:
    """What masks are trained on.

    Attributes:
        latents: Of images, as the denoiser sees them without noise [n, ...].
        ids: Number of each image's prompt, int64 [n].
        prompts: The prompts, each once.
        flipped: Latents of the flipped images, or None.
    """

    latents: Tensor
    ids: Tensor
    prompts: tuple[str, ...]
    flipped: Tensor | None = None

    def batches(self, batch_size: int, seed: int) -> Batches:
        """Return them in batches of `latents` and `ids`, half of them flipped where there are flipped ones.

        Raises:
            InputError: When there are fewer images than a batch takes.
        """
        rows = {"latents": self.latents, "ids": self.ids}
        if self.flipped is None:
            return Batches(rows, batch_size, seed=seed)

        def flip(batch: dict, generator: torch.Generator) -> dict:
            own = Rows.of(len(batch["ids"]))
            turned = own.draw(lambda rows: torch.rand(rows, generator=generator)) < 0.5
            shape = (-1, *[1] * (batch["latents"].ndim - 1))
            return {
                "latents": torch.where(turned.view(shape), batch["flipped"], batch["latents"]),
                "ids": batch["ids"],
            }

        return Batches({**rows, "flipped": self.flipped}, batch_size, seed=seed, transform=flip)


@torch.no_grad()
def encode_images(pipe: "DiffusionPipeline", images: Tensor) -> Tensor:
    """Return the latents of images as the denoiser sees them, [n, C, h, w]; the counterpart of `decode_latents`.

    Args:
        pipe: A pipeline with an `AutoencoderKL`, except FLUX, whose latents are packed here too [n, tokens, C].
        images: [n, 3, H, W] in [0, 1].
    """
    vae, config = pipe.vae, pipe.vae.config
    parts = []
    for part in images.split(16):
        found = vae.encode((2 * part - 1).to(vae.device, vae.dtype)).latent_dist.mode().float()
        found = (found - (config.get("shift_factor") or 0.0)) * config.scaling_factor
        if hasattr(pipe, "_pack_latents"):
            found = pipe._pack_latents(found, *found.shape)
        parts.append(found.cpu())
    return torch.cat(parts)


class MaskTraining(L.LightningModule):
    """Trains mask generators that are attached to a frozen denoiser.

    Args:
        net: The generators.
        handle: Attached, stochastic.
        error: The denoising error of the host.
        training: The options.
    """

    def __init__(self, net: MaskNet, handle: MaskHandle, error: DenoisingError, training: Training) -> None:
        super().__init__()
        self.net, self.average = net, Average(net, warm_decay(training.ema))
        self.handle, self.error, self.training_options = handle, error, training
        self._looked = 0

    def training_step(self, batch: Mapping[str, Tensor], index: int) -> Tensor:
        """Return the denoising loss of a batch, at one timestep an image, under masks drawn anew."""
        latents = batch["latents"]
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        timesteps = self.error.draw_timesteps(len(latents), generator)
        noise = torch.randn(latents.shape, generator=generator)
        self.handle.reseed(int(torch.randint(2**62, (), generator=generator)))
        loss = self.error(latents, batch["ids"], timesteps, noise).mean()
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def on_after_backward(self) -> None:
        """Refuse generators that never get a gradient, as the released ones do not.

        Raises:
            InputError: Naming the weight.
        """
        self._looked += 1
        if self._looked != _LOOKED_AT or self.net.config.generator in ("released", "static"):
            return
        for name, p in self.net.named_parameters():
            if p.grad is not None and not bool(p.grad.any()):
                raise InputError(
                    f"the mask generator's weight {name!r} gets no gradient after {_LOOKED_AT} steps: its masks would "
                    "stay as they are; take a smaller init_logit or another generator"
                )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the average."""
        super().optimizer_step(*args, **kwargs)
        self.average.update(self.net)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW at a constant rate."""
        return torch.optim.AdamW(self.net.parameters(), lr=self.training_options.learning_rate)


def train_masks(
    pipe: "DiffusionPipeline",
    examples: Examples,
    config: MaskConfig = MaskConfig(),
    training: Training = Training(),
    run: Run | None = None,
    progress: bool = True,
) -> MaskNet:
    """Train masks for a pipeline; a run that was stopped goes on to the same numbers.

    Args:
        pipe: A text-to-image pipeline of the families sd, sdxl, sd3 or flux; its weights stay as they are.
        examples: Images and prompts.
        config: What is masked.
        training: How long and how.
        run: The open run, or None to keep nothing.
        progress: Whether to show a bar.

    Returns:
        The averaged generators.

    Raises:
        InputError: When settings do not fit each other, or the generators get no gradient.
        NonFiniteError: On NaN or infinity; the last checkpoint stays.
    """
    policy = Policy(pipe, examples.prompts, Rollout(num_inference_steps=2, guidance_scale=1.0))
    policy.denoiser.requires_grad_(False)
    net = MaskNet.of(pipe, config, training.seed)
    ids = policy.ids_of(examples.prompts)[examples.ids]
    ordered = Examples(examples.latents, ids, policy.prompts, examples.flipped)
    with net.attach(pipe, stochastic=True) as handle, torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        module = MaskTraining(net, handle, DenoisingError(policy), training)
        fit(
            module,
            ordered.batches(training.batch_size, training.seed),
            run=run,
            options=training,
            clip=training.max_grad_norm,
            unused_parameters=True,
            progress=progress,
        )
    net.load_state_dict(module.average.model.state_dict())
    return net


@torch.no_grad()
def validation_losses(
    policy: Policy, latents: Tensor, ids: Tensor, timesteps: Sequence[int], seed: int
) -> Tensor:
    """Return each image's denoising error as the denoiser is now, a mean over timesteps, [n].

    Args:
        policy: The pipeline and its prompts.
        latents: Held-out latents [n, ...].
        ids: Prompt numbers, int64 [n].
        timesteps: At which all are noised.
        seed: Of the noise, one a timestep.
    """
    error, found = DenoisingError(policy), []
    for number, t in enumerate(timesteps):
        generator = torch.Generator().manual_seed(seed * 1000 + number)
        noise = torch.randn(latents.shape, generator=generator)
        steps = torch.full((len(latents),), t, dtype=torch.float64 if error.host.is_flow else torch.int64)
        parts = zip(*(x.split(64) for x in (latents, ids, steps, noise)), strict=True)
        found.append(torch.cat([error(*part).cpu() for part in parts]))
    return torch.stack(found).mean(0)


def trainable_count(module: nn.Module) -> int:
    """Return how many numbers of a module are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
