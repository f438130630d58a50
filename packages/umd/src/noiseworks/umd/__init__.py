"""UMD, unified masked diffusion (arXiv 2406.17688): one auto-encoder for representation and generation.

Read `options` (the mixture's numbers), `model` (encoder and decoder), `mixture` (the loss), `sampling`, `training`,
`features`, then `claim`.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
