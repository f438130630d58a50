"""Diff-Protect (arXiv 2311.12832): protection against imitation by diffusion models, by score distillation.

Read `noiseworks.kits.protection.objectives` (the losses, SDS and SDST), then `methods` (the whole table of attacks),
`purifying_steps` (Diff-PGD), `latent_attack` and `bottleneck` (why the encoder is the weak point).
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
