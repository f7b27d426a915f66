"""What was generated? One row a trial: recorded append-only, compacted to Parquet, read as tables.

`collect` writes, `scaling` and `zoo` read; generations of the paper's release are imported. Grading and accuracy live
elsewhere.
"""

from ._compact import compact as compact
from ._compact import write_traces as write_traces
from ._files import trace_files as trace_files
from ._inspect import TraceSummary as TraceSummary
from ._inspect import inspect_traces as inspect_traces
from ._paper import import_paper_traces as import_paper_traces
from ._paper_report import PaperFile as PaperFile
from ._paper_report import PaperImport as PaperImport
from ._paper_report import PaperIssue as PaperIssue
from ._paper_report import PaperReport as PaperReport
from ._read_tables import read_tables as read_tables
from ._reader import read_traces as read_traces
from ._rewrite import rewrite_traces as rewrite_traces
from ._schema import FINISH_REASONS as FINISH_REASONS
from ._schema import SCHEMA_VERSION as SCHEMA_VERSION
from ._schema import Trace as Trace
from ._table import TraceTable as TraceTable
from ._verify import TraceCheck as TraceCheck
from ._verify import TraceIssue as TraceIssue
from ._verify import verify_traces as verify_traces
from ._writer import TraceWriter as TraceWriter
