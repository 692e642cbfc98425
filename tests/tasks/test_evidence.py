"""Of which tokenizer a champion's evidence is: prompts alone may be the same for two of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from promotions import GOOD

from betaflow.config import Params
from betaflow.errors import UserError
from tasks import tracking
from tasks._evidence import _require_same_tokenizer, inputs, of_version
from tasks._registry import Registry
from tasks.promote import promote_arm

SFT = Path("out/sft")


def test_kept_samples_are_not_used_beside_another_tokenizer(sweep: Params) -> None:
    assert promote_arm(sweep, GOOD).promoted
    registry = Registry(tracking.client(), sweep.run.registered_model)
    version = registry.holder("champion")
    assert version is not None
    of_version(sweep, registry, version)
    tokenizer = SFT / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    with pytest.raises(UserError, match=r"another tokenizer .*run.registered_model"):
        of_version(sweep, registry, version)


def slow(folder: Path) -> Path:
    """Leave a folder a tokenizer that is no `tokenizer.json`; its vocabulary."""
    (folder / "tokenizer.json").unlink()
    vocabulary = folder / "spiece.model"
    vocabulary.write_bytes(b"pieces")
    return vocabulary


def test_samples_are_of_every_file_of_the_tokenizer_and_of_no_other(sweep: Params) -> None:
    slow(SFT)
    kept = inputs(sweep)
    for name in ("spiece.model", "tokenizer_config.json", "chat_template.jinja"):
        before = (SFT / name).read_bytes()
        (SFT / name).write_bytes(before + b"\n")
        now = inputs(sweep)
        assert {part for part in now if now[part] != kept[part]} == {"samples"}
        (SFT / name).write_bytes(before)
    for name in ("config.json", "model.safetensors", "summary.json", "metrics.jsonl"):
        (SFT / name).write_bytes(b"")
    assert inputs(sweep) == kept


def test_a_slow_tokenizer_is_told_from_another(sweep: Params) -> None:
    champion = Path("champion")
    shutil.copytree(SFT, champion)
    _require_same_tokenizer(champion, "version 1")
    vocabulary = slow(champion)
    with pytest.raises(UserError, match="another tokenizer"):
        _require_same_tokenizer(champion, "version 1")
    slow(SFT)
    # What its training wrote of where the tokenizer came from makes no other tokens.
    (champion / "tokenizer_config.json").write_text('{"is_local": true}')
    _require_same_tokenizer(champion, "version 1")
    vocabulary.write_bytes(b"other pieces")
    with pytest.raises(UserError, match="another tokenizer"):
        _require_same_tokenizer(champion, "version 1")
    for file in champion.iterdir():
        if file.suffix != ".safetensors":
            file.unlink()
    for nothing in (champion, None):
        with pytest.raises(UserError, match="without its tokenizer"):
            _require_same_tokenizer(nothing, "version 1")
