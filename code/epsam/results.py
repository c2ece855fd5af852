"""Figures that count: one `[result]` line in the log each, and the same as rows of metrics.csv."""

from collections.abc import Mapping

from pydantic import ConfigDict

from epsam.runtime.files import write_csv
from epsam.runtime.log import logger
from epsam.runtime.records import Row, read_rows
from epsam.workspace import Workspace

Value = str | int | float
HOW_TO_MAKE_IT_ANEW = ("delete it and run ./train.sh again with --from evaluate (--from train-classifier, for the "
                       "classifier's figures too)")


class ResultRow(Row):
    """A row of metrics.csv: which stage measured what; all further columns are figures."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float]

    stage: str
    method: str = ""
    split: str = ""

    def cells(self) -> dict[str, str]:
        """The row as it is written, without empty cells."""
        return {key: _written(value) for key, value in self if value != ""}


def _written(value: Value) -> str:
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.6g}"
    return str(int(value) if isinstance(value, float) else value)


def result_line(fields: Mapping[str, Value]) -> str:
    """`[result] key=value ...`; floats with 4 decimals."""
    shown = (f"{k}={v:.4f}" if isinstance(v, float) else f"{k}={v}" for k, v in fields.items())
    return "[result] " + " ".join(shown)


def record_results(workspace: Workspace, stage: str, rows: list[dict[str, Value]]) -> None:
    """Log `rows` and put them into metrics.csv in place of what `stage` had written there before."""
    for row in rows:
        logger.info(result_line(row))
    kept = [row for row in read_results(workspace) if row["stage"] != stage]
    new = [{"stage": stage} | {k: _written(v) for k, v in row.items()}
           for row in rows]
    columns = list(dict.fromkeys(key for row in kept + new for key in row))
    write_csv(workspace.metrics_csv, kept + new, columns)


def read_results(workspace: Workspace) -> list[dict[str, str]]:
    """Rows of metrics.csv, without empty cells; an empty list when nothing is written yet."""
    if not workspace.metrics_csv.is_file():
        return []
    rows = read_rows(workspace.metrics_csv, ResultRow, HOW_TO_MAKE_IT_ANEW)
    return [row.cells() for row in rows]
