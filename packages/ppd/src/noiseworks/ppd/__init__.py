"""PPD: one text-to-image pipeline tuned to many people's tastes.

Personalized Preference Fine-tuning of Diffusion Models (CVPR 2025, arXiv 2501.06655)

Read `encoders` and `users` (who somebody is, from a few choices), then `branch` (how the denoiser hears of it),
`training` (the loss over all people at once) and `personal` (drawing for somebody).
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
