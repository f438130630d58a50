"""LMD, latent masking diffusion (arXiv 2312.07971): masked auto-encoding of the latents of a frozen autoencoder.

Read `options` (the mask ratio by step), `model` (encoder, decoder, classifier), `latents`, `training`, `features`, then
`claim`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
