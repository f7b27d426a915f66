"""The embedded models and the traces recorded from them: the laboratory's default, offline."""

from ._models import FAMILY_NOTES as FAMILY_NOTES
from ._models import MINI_MODELS as MINI_MODELS
from ._models import ZooModel as ZooModel
from ._models import load_zoo_model as load_zoo_model
from ._models import model_folder as model_folder
from ._recorded import RECORDED_TRACES as RECORDED_TRACES
from ._recorded import recorded_tables as recorded_tables
