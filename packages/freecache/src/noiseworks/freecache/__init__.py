"""FreeCache and Guided Diffusion (arXiv 2505.21467): cached and guided decoding of masked language models.

Read `cache` (the windowed forward, and what is frozen when), `decoding` (block by block), `orders`, then `guidance`,
`guide`, `windows` and `guided` (the guide), `baselines` and `probe`; `transformers` is the drop-in for other samplers.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
