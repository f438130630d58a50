"""RED-diff: inverse problems by variational optimisation with a diffusion prior (ICLR 2024, arXiv 2305.04391).

Read `operators` (what was measured), `weights` (noise levels), `variational` (the method), `sampling` (DPS, PiGDM,
DDRM), `restoring` (one entry for all), `diffusers` (models), `claim`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
