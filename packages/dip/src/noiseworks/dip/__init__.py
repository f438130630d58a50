"""DIP: motion that fits a scene it never saw, by a policy inside the denoising loop (arXiv 2412.02261).

Read `network`, `rewards` (what a motion should do), `policy` (how the noisy motion is moved so that it does),
`sampling` (one round), `blending` and `agent` (many), then `baselines`. Bodies, rooms and measures are
`noiseworks.kits.motion`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
