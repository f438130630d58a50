"""Latent diffusion (arXiv 2112.10752): first stages, latent diffusion models of every conditioning kind, export.

Read `first_stage` (the autoencoder and its discriminator), `losses`, `codebook`; then `diffusion` and `objective` (the
denoiser in its latents), `conditioning`, `samplers`; `export` and `conversion` lead to and from other formats.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
