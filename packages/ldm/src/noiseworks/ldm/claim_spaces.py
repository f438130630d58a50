"""Where each arm's diffusion runs; nothing heavy is imported."""

from dataclasses import dataclass

_EARLY = (1 / 6, 1 / 5, 1 / 4, 1 / 3, 1 / 2, 3 / 4, 1.0)


@dataclass(frozen=True)
class Space:
    """Where an arm's diffusion runs, and its U-Net and training settings, chosen on seed 0.

    Attributes:
        label: What tables call the arm.
        channels: Channels of what is diffused.
        side: Its height and width.
        widths: Channels of the U-Net's levels; attention on the last one.
        batch_size: Rows a step.
        first_stage: Directory or `testbed:` name of the first stage; None diffuses pixels.
        marks: Shares of the training time at which samples are scored.
    """

    label: str
    channels: int
    side: int
    widths: tuple[int, ...]
    batch_size: int
    first_stage: str | None
    marks: tuple[float, ...]


SPACES = {
    "pixels": Space("pixel diffusion, f = 1", 3, 32, (16, 32, 48), 8, None, (1 / 4, 1 / 2, 1.0)),
    "latent": Space("latent diffusion, f = 4", 4, 8, (32, 48), 32, "testbed:shapes-vae", _EARLY),
}
