"""MoDE (arXiv 2412.12953): a diffusion policy with experts routed by the noise level, cached before it runs.

Read `edm` (preconditioning, densities, DDIM), `routing` and `experts`, `network`, `caching`, then `policy`, `training`,
and `vision` (FiLM-ResNets).
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
