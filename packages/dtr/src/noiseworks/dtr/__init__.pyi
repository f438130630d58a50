from .attaching import attach_routing as attach_routing
from .options import Routing as Routing
from .routing import affinity as affinity
from .routing import route_mask as route_mask
from .routing import route_starts as route_starts
from .training import fit_routed as fit_routed
from .training import load_routed as load_routed
from .training import save_routed as save_routed
