"""PAD: future images and robot poses denoised together by one transformer (arXiv 2411.18179).

Read `modalities` (what is denoised), `transformer` (tokens, views, heads), `diffusion` (noise, loss, sampling),
`windows` (targets, co-training), `model`, `policy`, then `claim`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
