"""Reading the tables that stages left under out/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from betaflow.config import Arm
from betaflow.errors import UserError
from betaflow.io import read_json

OUT = Path("out")


def read_arms(out: Path = OUT) -> list[Arm]:
    """The sweep's arms, from `arms.json`."""
    return [
        Arm(**{key: value for key, value in row.items() if key in Arm.model_fields})
        for row in read_json(out / "arms.json")
    ]


def read_samples(arms: Sequence[Arm], out: Path = OUT) -> dict[str, pd.DataFrame]:
    """By arm name, its scored completions."""
    folder = out / "samples"
    return {arm.name: read_table(folder / f"{arm.name}.parquet") for arm in arms}


def read_table(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """A stage's table, or some columns of it. A missing or damaged file is a `UserError`."""
    try:
        return pd.read_parquet(path, columns=columns)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; run `make align` (or `dvc repro`) to make it"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run again") from None
