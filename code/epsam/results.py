"""Figures that count: one `[result]` line in the log each, and the same as rows of metrics.csv.

Each stage keeps its own rows in runs/<name>/state/<stage>.results.json; metrics.csv is made from them, for people.
"""

from collections.abc import Mapping

from pydantic import ConfigDict

from epsam.errors import DataError
from epsam.runtime.files import write_csv, write_json
from epsam.runtime.log import logger
from epsam.runtime.records import Record, Row, read_record, read_rows
from epsam.workspace import Workspace

Value = str | int | float
STAGES = ("train-classifier", "evaluate")
"""Stages that measure something, in the order of metrics.csv."""
LOGGED = (
    "split",
    "method",
    "dice",
    "iou",
    "auc",
    "accuracy",
    "patches",
    "normal_marked",
    "pxap",
)
"""Columns of metrics.csv that the log shows, in this order, on lines of 110 characters at most: scripts read them."""
HOW_TO_MEASURE_AGAIN = (
    "run ./train.sh again with --from evaluate (--from train-classifier, for the classifier's figures too)"
)


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


class ResultsRecord(Record):
    """<stage>.results.json."""

    rows: list[ResultRow]


def _written(value: Value) -> str:
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.6g}"
    return str(int(value) if isinstance(value, float) else value)


def _in_short(row: Mapping[str, Value]) -> dict[str, Value]:
    """The figures of a row that a line of the log has room for; metrics.csv has all."""
    return {key: row[key] for key in LOGGED if key in row}


def result_line(fields: Mapping[str, Value]) -> str:
    """`[result] key=value ...`; floats with 4 decimals."""
    shown = (f"{k}={v:.4f}" if isinstance(v, float) else f"{k}={v}" for k, v in fields.items())
    return "[result] " + " ".join(shown)


def record_results(workspace: Workspace, stage: str, rows: list[dict[str, Value]]) -> None:
    """Log `rows` and keep them in place of what `stage`, one of STAGES, had found before."""
    for row in rows:
        logger.info(result_line(_in_short(row)))
    new = [{"stage": stage} | {k: _written(v) for k, v in row.items()} for row in rows]
    write_json(workspace.results(stage), {"rows": new})
    _write_table(workspace)


def read_results(workspace: Workspace) -> list[dict[str, str]]:
    """Rows of all stages as metrics.csv shows them, without empty cells; empty when nothing is measured yet.

    Raises DataError when a record is damaged.
    """
    paths = [path for stage in STAGES if (path := workspace.results(stage)).is_file()]
    return [row.cells() for path in paths for row in read_record(path, ResultsRecord, HOW_TO_MEASURE_AGAIN).rows]


def restore_table(workspace: Workspace) -> None:
    """Write metrics.csv again where it is not what the stages found; where it is missing, the evaluation runs again."""
    if not workspace.metrics_csv.is_file() or not any(workspace.results(stage).is_file() for stage in STAGES):
        return
    try:
        shown = [row.cells() for row in read_rows(workspace.metrics_csv, ResultRow, HOW_TO_MEASURE_AGAIN)]
    except DataError:
        shown = None
    if shown != read_results(workspace):
        logger.warning(f"{workspace.metrics_csv}: is not what the stages found; written again from their records")
        _write_table(workspace)


def _write_table(workspace: Workspace) -> None:
    rows = read_results(workspace)
    write_csv(workspace.metrics_csv, rows, list(dict.fromkeys(["stage", *(key for row in rows for key in row)])))
