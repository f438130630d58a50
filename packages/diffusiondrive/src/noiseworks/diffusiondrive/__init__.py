"""DiffusionDrive: truncated diffusion from anchors, in two network calls (arXiv 2411.15139).

Read `truncation` (anchors, levels, steps), `decoder` (the cascade), `losses`, `planner`, then `baselines`. The score is
`noiseworks.kits.driving`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
