"""Everything under `out/data`: SFT text, prompts, human pairs, statistics.

| file | rows |
|---|---|
| `sft_train.jsonl`, `sft_eval.jsonl` | `{"text"}` or `{"messages"}` |
| `prompts_train.jsonl`, `prompts_eval.jsonl` | `{"id", "prompt"}`, of labelled prompts |
| `prompts_unlabelled.jsonl`, `prompts_ood.jsonl` | the same (embedded world only) |
| `pairs_train.jsonl`, `pairs_eval.jsonl` | `{"id", "prompt", "chosen", "rejected"}`, human pairs |
| `cloze.jsonl` | for lm-eval (embedded world only) |
| `statistics.json` | rows read, dropped by reason, kept |

Every file is there whatever the source, empty where it has nothing. Rows of real data are sorted
by content hash: the same rows in any order give the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from betaflow.config import DataSettings
from betaflow.data.clean import clean_documents, clean_pairs
from betaflow.data.files import Row
from betaflow.data.formats import read_documents, read_pairs
from betaflow.data.schema import Pair, content_id, text_of
from betaflow.data.splits import in_eval
from betaflow.errors import UserError
from betaflow.io import write_json, write_jsonl

NAMES = (
    "sft_train",
    "sft_eval",
    "prompts_train",
    "prompts_unlabelled",
    "prompts_eval",
    "prompts_ood",
    "pairs_train",
    "pairs_eval",
    "cloze",
)


class Prepared(NamedTuple):
    """Rows by file name (without `.jsonl`), and what there is to say about them."""

    rows: dict[str, list[Row]]
    statistics: dict[str, Any]


def prepare(settings: DataSettings) -> Prepared:
    """Read, check, clean and split what the settings name. Raises `UserError`."""
    return _world(settings) if settings.source == "world" else _pairs(settings)


def write(prepared: Prepared, folder: Path) -> None:
    """Write the files of `out/data` into an existing folder."""
    for name in NAMES:
        write_jsonl(folder / f"{name}.jsonl", prepared.rows[name])
    write_json(folder / "statistics.json", prepared.statistics)


def summary(statistics: dict[str, Any]) -> str:
    """Say in a few lines what was read, dropped and kept."""
    verb = "made" if statistics["source"] == "world" else "read"
    lines = [f"data from {statistics['source']}: {statistics['rows_read']} rows {verb}"]
    for title, part in (("", statistics), ("SFT text: ", statistics["sft"])):
        for reason, count in part["dropped"].items():
            lines.append(f"  {title}dropped {count}: {reason}")
    kept = statistics["kept"]
    lines += [f"  kept {kept[name]:>8} in {name}.jsonl" for name in NAMES if kept[name]]
    if pairs := statistics.get("pairs"):
        means = ", ".join(f"{name} {mean}" for name, mean in pairs["mean_characters"].items())
        lines.append(f"  mean characters: {means}")
        lines.append(f"  chosen is longer in {pairs['chosen_longer']:.0%} of pairs")
        if pairs["contradictory"]:
            lines.append(f"  {pairs['contradictory']} pairs are also there the other way round")
    return "\n".join(lines)


def _world(settings: DataSettings) -> Prepared:
    from betaflow.worlds import sentiment  # not needed, so not loaded, for real data

    assert settings.world is not None
    world = sentiment.build(settings.world, settings.seed, settings.eval_fraction)
    for split, prompts in (("train", world.prompts_train), ("eval", world.prompts_eval)):
        if not prompts:
            raise UserError(
                f"none of the world's prompts falls in the {split} split; raise data.world.prompts "
                "or change data.eval_fraction"
            )
    rows: dict[str, list[Row]] = {name: [] for name in NAMES}
    rows.update({name: list(value) for name, value in world._asdict().items()})
    total = sum(map(len, rows.values()))
    return _prepared(settings, rows, total, Counter(), {"rows_read": 0, "dropped": {}})


def _pairs(settings: DataSettings) -> Prepared:
    pairs, dropped = clean_pairs(read_pairs(settings))
    rows: dict[str, list[Row]] = {name: [] for name in NAMES}
    for split, part in zip(("train", "eval"), _split(pairs, settings), strict=True):
        rows[f"pairs_{split}"] = [pair._asdict() for pair in part]
        rows[f"prompts_{split}"] = _prompts(part)
    text = _chosen_text(rows) if settings.text is None else _text_file(rows, settings)
    prepared = _prepared(settings, rows, len(pairs) + dropped.total(), dropped, text)
    prepared.statistics["pairs"] = _describe(pairs)
    return prepared


def _chosen_text(rows: dict[str, list[Row]]) -> Row:
    """Fill the SFT rows with Preferred-FT: the chosen completions, split as their pairs are."""
    read, dropped = 0, Counter[str]()
    for split in ("train", "eval"):
        documents = [_document(Pair(**row)) for row in rows[f"pairs_{split}"]]
        rows[f"sft_{split}"], repeated = clean_documents(documents)
        read, dropped = read + len(documents), dropped + repeated
    return {"rows_read": read, "dropped": _sorted(dropped)}


def _text_file(rows: dict[str, list[Row]], settings: DataSettings) -> Row:
    """Fill the SFT rows from `data.text`, split by each document's own hash."""
    assert settings.text is not None
    documents, dropped = clean_documents(read_documents(settings.text, settings.max_rows))
    for document in documents:
        content = document["messages"] if "messages" in document else document["text"]
        split = "eval" if in_eval(content, settings.eval_fraction) else "train"
        rows[f"sft_{split}"].append(document)
    for split in ("train", "eval"):
        if not rows[f"sft_{split}"]:
            raise UserError(
                f"{settings.text}: none of the {len(documents)} documents falls in the {split} "
                "split; give more text or change data.eval_fraction"
            )
    return {"rows_read": len(documents) + dropped.total(), "dropped": _sorted(dropped)}


def _document(pair: Pair) -> Row:
    if isinstance(pair.prompt, str) and isinstance(pair.chosen, str):
        return {"text": pair.prompt + pair.chosen}
    return {"messages": [*pair.prompt, *pair.chosen]}


def _split(pairs: list[Pair], settings: DataSettings) -> tuple[list[Pair], list[Pair]]:
    if not pairs:
        raise UserError(f"{settings.path}: no pair is left; see what a row must hold in README.md")
    train: list[Pair] = []
    held_out: list[Pair] = []
    for pair in pairs:
        (held_out if in_eval(pair.prompt, settings.eval_fraction) else train).append(pair)
    if not train or not held_out:
        empty = "eval" if train else "train"
        raise UserError(
            f"{settings.path}: none of the {len(pairs)} pairs falls in the {empty} split; "
            "give more data or change data.eval_fraction"
        )
    return train, held_out


def _prompts(pairs: Iterable[Pair]) -> list[Row]:
    found = {content_id(pair.prompt): pair.prompt for pair in pairs}
    return [{"id": key, "prompt": found[key]} for key in sorted(found)]


def _prepared(
    settings: DataSettings, rows: dict[str, list[Row]], read: int, dropped: Counter[str], text: Row
) -> Prepared:
    statistics = {
        "source": settings.source,
        "rows_read": read,
        "dropped": _sorted(dropped),
        "kept": {name: len(rows[name]) for name in NAMES},
        "sft": text,
    }
    return Prepared(rows, statistics)


def _describe(pairs: list[Pair]) -> Row:
    texts = [tuple(map(text_of, pair[1:])) for pair in pairs]
    means = {
        name: round(sum(len(text[index]) for text in texts) / len(texts), 1)
        for index, name in enumerate(("prompt", "chosen", "rejected"))
    }
    longer = sum(len(chosen) > len(rejected) for _, chosen, rejected in texts) / len(texts)
    ids = {pair.id for pair in pairs}
    reversed_ids = (content_id([pair.prompt, pair.rejected, pair.chosen]) for pair in pairs)
    return {
        "mean_characters": means,
        # Far from a half, a model can win by length alone.
        "chosen_longer": round(longer, 4),
        # Annotators disagreed: both rows are kept, both are counted.
        "contradictory": sum(other in ids for other in reversed_ids),
    }


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))
