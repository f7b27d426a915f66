"""Problems in, traces out, resumable."""

from ._collect import Collector as Collector
from ._collect import collect_traces as collect_traces
from ._fan_out import fan_out as fan_out
from ._regrade import Regrading as Regrading
from ._regrade import regrade as regrade
from ._report import CollectReport as CollectReport
from ._report import Estimate as Estimate
from ._report import Price as Price
from ._report import Progress as Progress
from ._shard import Shard as Shard
