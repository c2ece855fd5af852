"""The round whose decoder predicts, as the stage retrain recorded it in runs/<name>/rounds.csv."""

from typing import Annotated

from pydantic import Field, NonNegativeInt

from epsam.errors import DataError
from epsam.runtime.records import Row, read_rows
from epsam.workspace import Workspace

FIX = "run ./train.sh again with --from retrain"


class RoundAgreement(Row):
    """A line of rounds.csv."""

    round: NonNegativeInt
    agreement: Annotated[float, Field(ge=0, le=1)]
    """Mean Dice of what the round predicts for the val patches with their CAM masks."""
    used: Annotated[int, Field(ge=0, le=1)]
    """1 for the round whose decoder predicts, and for no other."""


def read_rounds(workspace: Workspace) -> list[RoundAgreement]:
    """All rounds from 0 on. Raises DataError when the table is missing or damaged."""
    rows = read_rows(workspace.rounds_csv, RoundAgreement, FIX)
    if [row.round for row in rows] != list(range(len(rows))) or sum(row.used for row in rows) != 1:
        raise DataError(f"{workspace.rounds_csv}: has to list the rounds from 0 on, one of them as used; {FIX}")
    return rows


def used_round(workspace: Workspace) -> int:
    """The round whose decoder predicts. Raises DataError when the table is missing or damaged."""
    return next(row.round for row in read_rounds(workspace) if row.used)
