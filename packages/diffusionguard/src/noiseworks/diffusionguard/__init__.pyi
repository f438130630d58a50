from .contours import ContourShrink as ContourShrink
from .early_stage import EarlyStage as EarlyStage
from .early_stage import early_stage_loss as early_stage_loss
from .guarding import DiffusionGuard as DiffusionGuard
from .methods import METHODS as METHODS
from .methods import protect_with as protect_with
from .options import Editing as Editing
from .options import Guard as Guard
