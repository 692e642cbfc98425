"""A registered model: its versions, and the aliases `challenger` and `champion`.

Which version is champion is what the alias says and nothing else: moving it is the one step that
makes a champion. A version's tag `betaflow.replaces` names the champion before it. It is written
just before the alias moves, once, and never changed: so the tags lead back from the champion
through those before it, and a promotion that is cut off leaves a version that nothing leads to.

A version belongs to one promotion at a time, which marks it by the tag `betaflow.in_use`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from betaflow.errors import UserError
from tasks._claim import claimed

TAG = "betaflow."
CONTENT = TAG + "content"  # a fingerprint of its weights
EVIDENCE = TAG + "evidence"  # a fingerprint of what it was judged by
REPLACES = TAG + "replaces"  # the champion's number before; empty: there was none
IN_USE = TAG + "in_use"  # of a version that a promotion is judging
CHAMPION, CHALLENGER = "champion", "challenger"
MODEL, FOLDER = "model", "evaluation"  # folders of a version's artifacts


class ChampionChanged(UserError):
    """Another program moved the champion meanwhile."""


class Version(NamedTuple):
    """A version as the registry has it; `source`: the address of its files."""

    number: int
    tags: dict[str, str]
    source: str

    @classmethod
    def of(cls, found: Any) -> Version:
        """From MLflow's."""
        return cls(int(found.version), dict(found.tags), found.source)


class Registry:
    """One registered model."""

    def __init__(self, client: Any, model: str) -> None:
        self.client, self.model = client, model

    def holder(self, alias: str) -> Version | None:
        """The version that an alias points at."""
        from mlflow.exceptions import MlflowException

        try:
            number = self.client.get_registered_model(self.model).aliases.get(alias)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return None if number is None else self.version(int(number))

    def version(self, number: int) -> Version | None:
        """A version; None if it was deleted."""
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.get_model_version(self.model, str(number))
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return Version.of(found)

    def versions(self) -> list[Version]:
        """Every version, the newest first."""
        found: list[Version] = []
        token = None
        while True:
            page = self.client.search_model_versions(f"name = '{self.model}'", page_token=token)
            found += map(Version.of, page)
            if not (token := page.token):
                return sorted(found, key=lambda one: -one.number)

    def download(self, number: int, folder: str, destination: Path) -> Path | None:
        """A folder of a version's artifacts, fetched into an existing one; None: it has none."""
        from mlflow import artifacts
        from mlflow.exceptions import MlflowException

        uri = f"models:/{self.model}/{number}/{folder}"
        try:
            found = Path(artifacts.download_artifacts(uri, dst_path=str(destination)))
        except (MlflowException, OSError):
            # Stores differ in how they say that there is no such thing; look before believing it.
            whole = f"models:/{self.model}/{number}"
            if any(file.path == folder for file in artifacts.list_artifacts(artifact_uri=whole)):
                raise
            return None
        return found if any(found.iterdir()) else None

    def tag(self, number: int, tags: dict[str, str], instead_of: str | None = None) -> None:
        """Set tags of a version; of those that begin with `instead_of` no other stays."""
        version = None if instead_of is None else self.version(number)
        if version is not None and instead_of is not None:
            for key in {key for key in version.tags if key.startswith(instead_of)} - set(tags):
                self.client.delete_model_version_tag(self.model, str(number), key)
        for key, value in tags.items():
            self.client.set_model_version_tag(self.model, str(number), key, value)

    def reserve(self, find: Callable[[], int | None]) -> int | None:
        """Take a version for one promotion; `find` tells which (None: there is none to take)."""
        if find() is None:
            return None
        with claimed(self.client, self.model) as still_ours:
            number = find()  # another promotion may have taken it meanwhile
            if number is not None:
                still_ours()
                self.tag(number, {IN_USE: "true"})
            return number

    def release(self, number: int) -> None:
        """Let other promotions take a version. One that is not released is never taken again."""
        from mlflow.exceptions import MlflowException

        with suppress(MlflowException):
            self.client.delete_model_version_tag(self.model, str(number), IN_USE)

    def move_champion(self, to: int, *, instead_of: int | None) -> None:
        """Make a version champion, if the champion is still the one that it was judged against.

        It is challenger no more. So it is where somebody made it champion by hand meanwhile.

        Args:
            instead_of: that champion's number; None: there was none.

        Raises:
            ChampionChanged: it is another one by now; nothing was moved.
        """
        with claimed(self.client, self.model) as still_ours:
            self._require(instead_of, to)
            self.tag(to, {REPLACES: "" if instead_of is None else str(instead_of)})
            still_ours()
            self._point(to)
            challenger = self.holder(CHALLENGER)
            if challenger is not None and challenger.number == to:
                self.client.delete_registered_model_alias(self.model, CHALLENGER)

    def restore_champion(self) -> tuple[int, int]:
        """Point `champion` at the version that it was before; the numbers from and to.

        Raises:
            UserError: there is no champion, or none before it.
        """
        if self.holder(CHAMPION) is None:
            raise UserError(f"{self.model} has no champion to roll back; `make promote` makes one")
        with claimed(self.client, self.model) as still_ours:
            now = self.holder(CHAMPION)
            if now is None:
                raise ChampionChanged(f"{self.model} has no champion any more")
            before = now.tags.get(REPLACES)
            if not before:
                raise UserError(
                    f"version {now.number} of {self.model} is the first champion: there is none "
                    "before it to roll back to"
                )
            if self.version(int(before)) is None:
                raise UserError(
                    f"version {before} of {self.model}, the champion before, was deleted; choose "
                    "another in MLflow and give it the alias `champion`"
                )
            still_ours()
            self._point(int(before))
            return now.number, int(before)

    def _require(self, *expected: int | None) -> None:
        found = self.holder(CHAMPION)
        number = None if found is None else found.number
        if number not in expected:
            shown = "no champion" if number is None else f"version {number}"
            raise ChampionChanged(
                f"{self.model} had its champion changed meanwhile (now: {shown}); run again to be "
                "compared with that"
            )

    def _point(self, to: int) -> None:
        self.client.set_registered_model_alias(self.model, CHAMPION, str(to))
        self._require(to)  # what does not claim (MLflow's UI, a script) may move it too
