"""Results are shown and tracked under the parameters that they were made with, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from betaflow.config import Params
from betaflow.errors import UserError
from tasks._made_with import require_same

GONE, ARM = "dpo@dpo-9.0-0.0005-0", "dpo@dpo-0.1-0.0005-0"


def lock(values: dict[str, Any]) -> dict[str, Any]:
    training = {"params.yaml": {"dpo.training": values["dpo"]["training"]}}
    sft = {"outs": [{"path": "out/sft", "md5": "1.dir"}]}
    return {
        "stages": {
            "sft": sft | {"params": {"params.yaml": {"sft": values["sft"]}}},
            ARM: {
                "deps": [{"path": "out/sft", "md5": "1.dir"}, {"path": "tasks/dpo.py", "md5": "3"}],
                "params": training,
                "outs": [{"path": "out/dpo/dpo-b0.1-lr0.0005-s0", "md5": "2.dir"}],
            },
            GONE: {
                "params": {"params.yaml": {"dpo.training": "of another day"}},
                "outs": [{"path": "out/dpo/dpo-b9.0-lr0.0005-s0", "md5": "4.dir"}],
            },
        }
    }


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda stages, values: None, None),
        (lambda stages, values: values["sft"].update(seed=7), "sft"),
        (lambda stages, values: values["dpo"]["training"].update(epochs=2.0), "dpo.training"),
        (lambda stages, values: values["run"].update(jobs=1), None),
        (lambda stages, values: stages["sft"]["outs"][0].update(md5="5.dir"), "out/sft"),
    ],
)
def test_other_parameters_or_inputs_are_named(
    params: Params,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[..., None],
    named: str | None,
) -> None:
    values = yaml.safe_load((repository / "params.yaml").read_text())
    found = deepcopy(lock(values))
    monkeypatch.chdir(tmp_path)
    require_same(params)  # no lock: nothing to compare with
    change(found["stages"], values)
    Path("dvc.lock").write_text(yaml.safe_dump(found))
    Path("params.yaml").write_text(yaml.safe_dump(values))
    if named is None:
        require_same(params)
    else:
        with pytest.raises(UserError, match=rf"not of this params.yaml \({named}\); run `make"):
            require_same(params)
