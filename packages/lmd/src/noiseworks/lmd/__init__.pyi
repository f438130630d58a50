from .blending import blend as blend
from .blending import distance as distance
from .options import Blending as Blending
