"""The recorded traces: what the embedded models said on held-out problems, under every attention spec tried."""

from pathlib import Path

from kinetics_jax.traces import TraceTable, read_tables

RECORDED_TRACES = Path(__file__).parent / "traces"
"""Folder of the Parquet files, one a model."""


def recorded_tables() -> list[TraceTable]:
    """Read the recorded traces, one table a (model, attention).

    Example:
        >>> sorted({table.model for table in recorded_tables()})[0]
        'Kinetics-Mini-0.1M'
    """
    return read_tables(RECORDED_TRACES)
