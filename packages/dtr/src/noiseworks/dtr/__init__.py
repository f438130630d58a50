"""Denoising task routing (arXiv 2310.07138): each timestep has its own window of channels in the same weights.

Read `routing` (the masks and the routed block), `attaching` (any DiT), `training`, then `claim`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
