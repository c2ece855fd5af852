"""Figures that count: one `[result]` line in the log each, and the same as rows of metrics.csv."""

from collections.abc import Mapping

from epsam.runtime.files import read_csv, write_csv
from epsam.runtime.log import logger
from epsam.workspace import Workspace

Value = str | int | float


def result_line(fields: Mapping[str, Value]) -> str:
    """`[result] key=value ...`; floats with 4 decimals."""
    shown = (f"{k}={v:.4f}" if isinstance(v, float) else f"{k}={v}" for k, v in fields.items())
    return "[result] " + " ".join(shown)


def record_results(workspace: Workspace, stage: str, rows: list[dict[str, Value]]) -> None:
    """Log `rows` and put them into metrics.csv in place of what `stage` had written there before."""
    for row in rows:
        logger.info(result_line(row))
    kept = [row for row in read_results(workspace) if row["stage"] != stage]
    new = [{"stage": stage} | {k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in row.items()}
           for row in rows]
    columns = list(dict.fromkeys(key for row in kept + new for key in row))
    write_csv(workspace.metrics_csv, kept + new, columns)


def read_results(workspace: Workspace) -> list[dict[str, str]]:
    """Rows of metrics.csv, without empty cells; an empty list when nothing is written yet."""
    if not workspace.metrics_csv.is_file():
        return []
    rows = read_csv(workspace.metrics_csv, ["stage"])
    return [{key: value for key, value in row.items() if value} for row in rows]
