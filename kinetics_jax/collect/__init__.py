"""Problems in, traces out, resumable."""

from ._collect import Collector as Collector
from ._collect import Progress as Progress
