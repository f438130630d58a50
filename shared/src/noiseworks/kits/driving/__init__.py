"""What planners for driving share: scenes, the tracker that drives a plan, and the PDM score that judges it.

Everything is numpy in float64 and works on batches: B scenes with P proposals each.

- `scenes`: `Scenes`, roads as strips of constant curvature, routes, and recorded traffic.
- `vehicle`: the ego vehicle's measures, corners, overlap of boxes.
- `tracking`: plans interpolated, and driven by a linear-quadratic tracker on a kinematic bicycle.
- `scoring`: no at-fault collision, drivable area, time to collision, comfort, progress, and their product.
- `pictures`: a scene with plans, from above.
- `proposals`: intelligent-driver proposals along a route: the reference that progress is measured against.

The plans are poses (x forward, y left, heading) in metres and radians, relative to the ego's rear axle at the start.
The measures, constants and rules are those of NAVSIM's first score (version 1.1, with nuPlan's tracker).
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
