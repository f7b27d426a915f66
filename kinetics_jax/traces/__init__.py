"""What was generated? One row a trial: recorded append-only, compacted to Parquet, read as tables.

`collect` writes, `scaling` and `zoo` read. Grading and accuracy live elsewhere.
"""

from ._compact import compact as compact
from ._read_tables import read_tables as read_tables
from ._reader import read_traces as read_traces
from ._schema import SCHEMA_VERSION as SCHEMA_VERSION
from ._schema import Trace as Trace
from ._table import TraceTable as TraceTable
from ._writer import TraceWriter as TraceWriter
