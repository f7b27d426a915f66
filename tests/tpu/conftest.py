"""Compile for TPUs on a machine that has none, and print what each program needs at the end of the run."""

import os

import jax
import pytest

# libtpu asks the cloud which TPU it is on, and waits long for an answer.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
# A chip belongs to one process, so libtpu lets one load it; to compile, several may.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
jax.config.update("jax_platforms", "cpu")
# Nothing is run, so the compiler need not look for the fastest program: a third of its time.
jax.config.update("jax_exec_time_optimization_effort", -1.0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the memory that tests noted with `record_property`; workers of xdist send it along."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    lines = [line for report in reports for name, line in report.user_properties if name == "memory"]
    if lines:
        terminalreporter.section("memory of each chip")
        terminalreporter.write_line("\n".join(sorted(lines)))
