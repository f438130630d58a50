"""D3PO (arXiv 2311.13231): direct preference optimisation of the denoising steps, without a reward model.

Read `objective` (pairs, the loss of a step and its bounds), `training` (the online procedure and the one from
labels), `labels`, then `commands`. Steps, rollouts and the loop are those of `noiseworks.kits.image_tuning`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
