from .options import Architecture as Architecture
from .options import Fitting as Fitting
from .network import MotionModel as MotionModel
from .training import fit_motion as fit_motion
