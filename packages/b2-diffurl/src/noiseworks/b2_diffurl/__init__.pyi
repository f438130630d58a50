from .branches import HistoryNormalizer as HistoryNormalizer
from .branches import explained_share as explained_share
from .branches import select_branches as select_branches
from .options import Branching as Branching
from .options import Stages as Stages
from .options import Training as Training
from .training import B2DiffuRL as B2DiffuRL
