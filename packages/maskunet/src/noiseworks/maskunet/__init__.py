"""MaskUNet (arXiv 2505.03097): masks on a frozen denoiser's weights that depend on the timestep and on the sample.

Read `gumbel` (bits with a gradient), `masked_linear` (a layer under masks of each row, plain and fused), `generators`
(where logits come from), `masking` (which layers, attached), `training`, then `optimising` (masks without training).
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
