"""How is a small model trained? AdamW on a task's reference thoughts, data drawn on the device."""

from ._batches import TrainingBatch as TrainingBatch
from ._batches import training_batch as training_batch
from ._loop import TrainingReport as TrainingReport
from ._loop import thought_loss as thought_loss
from ._loop import train as train
from ._recipe import Recipe as Recipe
