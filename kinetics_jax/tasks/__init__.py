"""What is asked, what is right? One file a task; `get_task` finds it by name."""

from ._catalog import TASKS as TASKS
from ._catalog import get_task as get_task
from ._pathfind import Pathfind as Pathfind
from ._pathfind_questions import PathfindBatch as PathfindBatch
from ._pathfind_questions import problem_key as problem_key
from ._pathfind_questions import sample_questions as sample_questions
from ._pathfind_search import reference_thoughts as reference_thoughts
from ._pathfind_tokens import DEPTHS as DEPTHS
from ._pathfind_tokens import PAD as PAD
from ._protocol import Grade as Grade
from ._protocol import Problem as Problem
from ._protocol import Task as Task
