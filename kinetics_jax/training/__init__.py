"""How is a small model trained? AdamW on a task's reference thoughts, data drawn on the device."""

from ._batches import TrainingBatch as TrainingBatch
from ._batches import training_batch as training_batch
from ._checkpoint import Checkpoints as Checkpoints
from ._loop import TrainingReport as TrainingReport
from ._loop import thought_loss as thought_loss
from ._loop import train as train
from ._mini import MINI_RECIPES as MINI_RECIPES
from ._mini import mini_recipe as mini_recipe
from ._recipe import Recipe as Recipe
from ._record import TrainingRecord as TrainingRecord
from ._record import read_training_record as read_training_record
from ._record import write_training_record as write_training_record
