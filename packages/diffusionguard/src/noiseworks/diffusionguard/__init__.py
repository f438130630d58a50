"""DiffusionGuard (arXiv 2410.05694): images that diffusion inpainting fails on, whatever mask is drawn.

Read `early_stage` (the objective), `contours` (mask augmentation), `guarding` (both in the gradient loop of
`noiseworks.kits.protection`), then `methods` (the defences that it is compared with).
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
