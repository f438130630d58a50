"""Pad.

Prediction with Action: Visual Policy Learning via Joint Denoising Process (NeurIPS 2024, arXiv 2411.18179)

Read `blending` (eq. 1 and 2), then `claim`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
