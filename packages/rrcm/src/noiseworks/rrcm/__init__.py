"""Certified robustness with one call of one network: representations that agree along a diffusion trajectory.

Robust Representation Consistency Model via Contrastive Denoising (ICLR 2025, arXiv 2501.13094). Read `trajectory` and
`contrast` (the equations), `pretraining`, `finetuning`, then `smoothing` (the certificate) and `claim`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
