"""The theory of diffusion models as numbers that can be checked (arXiv 2404.07771).

Read `process`, `laws` (exact scores), `samplers`, `guidance`, `estimate`, `reward`, then `experiments` and `diagnosis`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
