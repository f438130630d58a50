"""Block-wise Adaptive Caching (arXiv 2506.13456): transformer diffusion policies that reuse block outputs.

Read `profiling` (how alike outputs are), `scheduling` (ACS, section 3.2), `bubbling` (BUA, section 3.3), `plan`, then
`cache` and `attaching` (how a plan runs), `hosts` (which networks), `choosing` (the best plan for an error budget).
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
