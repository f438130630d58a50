"""Lmd.

Latent Masking Diffusion (AAAI 2024, arXiv 2312.07971)

Read `blending` (eq. 1 and 2), then `claim`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
