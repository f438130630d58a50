"""What methods that generate human motion share: bodies, rooms, frames, measures and pictures.

A motion is [B, F, 69]: rotation vectors of 22 joints in SMPL's order (the global orientation first), then the
translation; metres, radians, z up. Everything is torch and differentiable unless it says otherwise.

- `rotations`: rotation vectors, matrices and quaternions, with signs that stay the same along a motion.
- `body`: `ProcBody`, a skeleton with markers that needs no licence, and `SkinnedBody` for models of SMPL's form.
- `scenes`: rooms of boxes with an exact signed distance, signed distances on a grid or from a mesh, and ways round.
- `frames`: the local frame of a motion's first pose, there and back.
- `measures`: foot contact, goal distance, penetration, naturalness, acceleration.
- `pictures`: a motion in its room, as a film.
- `files`: bodies, scenes and motions by path.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
