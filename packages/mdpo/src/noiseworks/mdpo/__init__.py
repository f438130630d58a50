"""MDPO and RCR (arXiv 2508.13148): better decoding, and reinforcement learning, for masked diffusion LMs.

Read `remasking` (RCR and the standard sampler), `trace`, `advantages` (rewards of steps to advantages), `micro_batches`
and `objective` (what is trained on, with which loss), `selection`, then `training`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
