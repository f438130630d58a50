"""First-hitting sampling of masked diffusion models (arXiv 2409.02908), and categorical draws done right.

Read `hitting` (when the next token appears), `sampling` (the sampler, Alg. 1), `higher_order`, `categorical` (draws in
the right precision), `objective`, then `ancestral` (the baseline) and `transformers` (LLaDA and Dream).
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
