"""SePPO (arXiv 2410.05255): preference optimisation on good images alone, against earlier checkpoints of the run.

Read `objective` (the flipper and the loss), `pool` (checkpoints as adapters, and who plays), `training`, `samples`
(opponents' images that are kept), then `commands`. Errors, adapters, sampling and the loop are those of
`noiseworks.kits.image_tuning`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
