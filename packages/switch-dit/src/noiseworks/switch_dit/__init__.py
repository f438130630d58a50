"""Switch-DiT (arXiv 2403.09176): sparse experts before every block of a DiT, gated by the timestep.

Read `gating`, `model` (the block, and how experts fold into one matrix), `prior` (the loss that draws the gates to
sliding windows), `training`, then `claim`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
