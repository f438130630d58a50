"""Backbones of image diffusion: a DiT with the released layout, a ViT, block hooks, experts, a recipe, metrics, probes.

- `dit`, `vit`, `layers`: the networks, under the parameter names of the released DiT and of timm's ViT.
- `conversion`: DiT to diffusers' `DiTTransformer2DModel` and back, strictly.
- `hooks`: `around_blocks`, which gives a method every block of a DiT together with the timesteps.
- `windows`: sliding windows of channels by timestep.
- `experts`: affine experts of whole samples, by grouped products; folded into one matrix where one gate serves all.
- `masking`: random masks of patches, and tokens back in their places.
- `training`, `options`: a recipe for class-conditional denoisers and one for any loss, on `kits.training`.
- `sampling`, `noise_bank`: samples with guidance; held-out losses on noise that all methods share.
- `metrics`, `probes`: Frechet distance and classifier score in features trained in place; probes.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
