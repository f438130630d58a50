"""PPAP: guides a diffusion model with networks that never saw noise (CVPR 2023, arXiv 2212.05973).

Read `routing` (who owns a timestep), `tasks` (losses and likelihoods), `guide`, `experts` (what differs from the
guide), `transfer` (training without data), `guidance` (the score), `diffusers` (hosts), `claim`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
