"""dvc.yaml names what each stage reads: a stage's code is part of its inputs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
STAGES = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
# Modules that every stage imports and that decide next to no byte of an output: settings' types,
# messages, the display, MLflow. Whoever changes what one of them computes makes the stages anew
# with `dvc repro -f -s`.
NEUTRAL = {
    "betaflow/config.py",
    "betaflow/errors.py",
    "betaflow/io.py",
    "betaflow/parent.py",
    "betaflow/progress.py",
    "tasks/_arguments.py",
    "tasks/_main.py",
    "tasks/tracking.py",
}


def imports(path: Path) -> set[Path]:
    """Files of this repository that a module imports, anywhere in it (type hints' apart)."""
    tree = ast.parse(path.read_text())
    hints = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    names = set()
    for node in ast.walk(tree):
        if node in hints:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    files = (REPOSITORY / (name.replace(".", "/") + ".py") for name in names)
    return {file for file in files if file.is_file()}


def closure(path: Path) -> set[str]:
    found, new = set[Path](), {path}
    while new:
        found |= new
        new = {file for one in new for file in imports(one)} - found
        new = {f for f in new if f.relative_to(REPOSITORY).as_posix() not in NEUTRAL}
    return {file.relative_to(REPOSITORY).as_posix() for file in found}


@pytest.mark.parametrize("stage", STAGES)
def test_every_module_that_a_stage_runs_is_its_dependency(stage: str) -> None:
    command = STAGES[stage]["cmd"].split()
    module = REPOSITORY / (command[2].replace(".", "/") + ".py")
    deps = [Path(dep) for dep in STAGES[stage]["deps"]]
    missing = {
        file for file in closure(module) if not any(Path(file).is_relative_to(dep) for dep in deps)
    }
    assert missing == set()


@pytest.mark.parametrize("stage", STAGES)
def test_every_dependency_in_the_repository_exists(stage: str) -> None:
    for dep in STAGES[stage]["deps"]:
        assert dep.startswith("out/") or (REPOSITORY / dep).exists(), dep
