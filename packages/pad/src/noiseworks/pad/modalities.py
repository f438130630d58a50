"""What is denoised together: images, poses, depth maps or anything else that is a grid or a vector, as data."""

from dataclasses import dataclass
from typing import Literal

from noiseworks.core.errors import InputError

Kind = Literal["grid", "vector"]


@dataclass(frozen=True)
class Modality:
    """One kind of what is predicted (section 3.2).

    Attributes:
        name: Its name, such as `rgb`, `action`, `depth`.
        kind: `grid`, tensors [B, channels, size, size] cut into patches, or `vector`, tensors [B, entries].
        noisy: Channels or entries that are denoised, all future frames together; 0 for a modality that is only seen.
        clean: Channels or entries of the present, which are given; 0 for none.
        size: Side of a grid.
        patch: Side of a token's patch.
        split: Tokens of a vector, between which its entries are shared.
        sees: Modalities that its tokens attend to; None for all.
        bound: Largest magnitude of clean values, to which predictions of them may be clipped; None for none.
    """

    name: str
    kind: Kind
    noisy: int
    clean: int
    size: int = 1
    patch: int = 1
    split: int = 1
    sees: tuple[str, ...] | None = None
    bound: float | None = 1.0

    def __post_init__(self) -> None:
        if self.sees is not None:
            object.__setattr__(self, "sees", tuple(self.sees))
        if self.noisy < 0 or self.clean < 0 or self.noisy + self.clean < 1:
            raise InputError(
                f"{self.name} needs channels, got {self.noisy} noisy and {self.clean} clean ones"
            )
        if self.size % self.patch:
            raise InputError(
                f"the {self.name}'s size {self.size} must be a multiple of its patch {self.patch}"
            )
        if self.noisy % self.split or self.clean % self.split:
            raise InputError(f"the {self.name}'s entries cannot be shared between {self.split} tokens")

    @property
    def side(self) -> int:
        """Tokens along a side of a grid."""
        return self.size // self.patch

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.side**2 if self.kind == "grid" else self.split

    def shape(self, channels: int) -> tuple[int, ...]:
        """Return the shape of one sample with that many channels or entries."""
        return (channels, self.size, self.size) if self.kind == "grid" else (channels,)


def check_modalities(modalities: tuple[Modality, ...]) -> None:
    """Refuse modalities that do not fit together.

    Raises:
        InputError: When names repeat, one sees what is not there, the first one is no grid, or a coarser grid does not
            share the finest one's positions.
    """
    names = [one.name for one in modalities]
    if not names or len(set(names)) != len(names):
        raise InputError(f"modalities need different names, at least one, got {names}")
    finest = max((one.side for one in modalities if one.kind == "grid"), default=0)
    for one in modalities:
        unknown = [name for name in one.sees or () if name not in names]
        if unknown:
            raise InputError(f"{one.name} sees {unknown[0]}, which is not among {', '.join(names)}")
        if one.kind == "grid" and finest % one.side:
            raise InputError(f"{one.name} has {one.side} tokens a side, which does not divide {finest}")
    if modalities[0].kind != "grid":
        raise InputError(f"the first modality must be a grid, which every sample has, got {names[0]}")


def world(
    *,
    frames: int,
    patch: int,
    image: tuple[int, int] | None,
    pose: tuple[int, int],
    depth: tuple[int, int] | None = None,
    predict: bool = True,
    isolated: bool = True,
    tokens: int = 1,
    bound: float | None = 1.0,
) -> tuple[Modality, ...]:
    """Return the paper's modalities: images, poses and, where there are some, depth maps.

    Args:
        frames: Future frames k.
        patch: Side of an image token's patch.
        image: Channels and size of an image or latent.
        pose: Entries of the future poses in all, and of the present pose.
        depth: Size of a depth map, and the patch's side.
        predict: Whether images and depth are predicted, or only seen.
        isolated: Whether images attend to images alone (the reference's `attn_mask`).
        tokens: Tokens of the poses; several leave the present pose out, as the reference's `action_condition=False`.
        bound: Largest magnitude of what is predicted of images; None for latents.
    """
    channels, size = image
    noisy = frames if predict else 0
    sees = ("rgb",) if isolated else None
    made = [
        Modality("rgb", "grid", noisy * channels, channels, size, patch, sees=sees, bound=bound),
        Modality("action", "vector", pose[0], pose[1] if tokens == 1 else 0, split=tokens),
    ]
    if depth is not None:
        made.append(Modality("depth", "grid", noisy, 1, depth[0], depth[1], bound=bound))
    check_modalities(tuple(made))
    return tuple(made)
