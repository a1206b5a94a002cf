"""MLflow's registered models, kept among our own models.

What `mlflow.register_model` makes is a version in `core.assets`, and what any
other door makes there is listed here: one list.  A model's bytes are where
the asset says, told to MLflow as an `mlflow-artifacts:` address.  Prompts and
what else MLflow keeps in its registry stay in MLflow's own tables.

MLflow counts versions; ours may be any text.  They are shown as they are, and
are loaded as `models:/NAME@VERSION` where the client wants a number after the
slash.  `models:/NAME@latest` is the newest one whatever it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from mlflow.entities.model_registry.model_version_stages import (
    ALL_STAGES,
    DEFAULT_STAGES_FOR_GET_LATEST_VERSIONS,
    get_canonical_stage,
)
from mlflow.prompt.constants import IS_PROMPT_TAG_KEY
from mlflow.prompt.registry_utils import has_prompt_tag
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils.search_utils import SearchModelUtils, SearchModelVersionUtils, SearchUtils

from finery.core import assets, errors, ids
from finery.core.assets import Asset, Name
from finery.doors.http import House
from finery.doors.mlflow import models
from finery.doors.mlflow.models import OURS, Version

_MOST_NAMES, _MOST_VERSIONS = 1000, 200_000  # MLflow's own limits for a page
_NEWEST = ["last_updated_timestamp DESC", "name ASC", "version_number DESC"]


class Registry(SqlAlchemyStore):  # type: ignore[misc]  # MLflow's classes are untyped to us
    """The store behind MLflow's model registry.  `workspace` says whose models are meant."""

    def __init__(self, url: str, *, house: House, runs: Any, workspace: Callable[[], str]) -> None:
        super().__init__(url)
        self._house, self._runs, self._workspace = house, runs, workspace
        self._assets = house.store

    # -- names -------------------------------------------------------------------------

    def create_registered_model(
        self,
        name: str,
        tags: list[Any] | None = None,
        description: str | None = None,
        deployment_job_id: str | None = None,
    ) -> Any:
        if has_prompt_tag(tags):
            return super().create_registered_model(name, tags, description, deployment_job_id)
        with models.said():
            made = assets.create_name(
                self._assets,
                Name(
                    scope=self._workspace(),
                    kind="model",
                    name=name,
                    description=description or "",
                    tags=models.tags_in(tags),
                ),
            )
        return models.name_out(made, [])

    def update_registered_model(
        self, name: str, description: str | None, deployment_job_id: str | None = None
    ) -> Any:
        if (found := self._find_name(name)) is None:
            return super().update_registered_model(name, description, deployment_job_id)
        return self._name_out(self._put_name(replace(found, description=description or "")))

    def rename_registered_model(self, name: str, new_name: str) -> Any:
        if self._find_name(name) is None:
            return super().rename_registered_model(name, new_name)
        raise models.failed(
            errors.NotSupported(
                f"Model {name!r} cannot be renamed: jobs and deployments know it by its name. "
                f"Register its versions as {new_name!r} instead (copy_model_version)."
            )
        )

    def delete_registered_model(self, name: str) -> None:
        if self._find_name(name) is None:
            super().delete_registered_model(name)
        else:
            assets.delete_name(self._assets, self._workspace(), "model", name)

    def search_registered_models(
        self,
        filter_string: str | None = None,
        max_results: int | None = None,
        order_by: list[str] | None = None,
        page_token: str | None = None,
    ) -> Any:
        if IS_PROMPT_TAG_KEY in (filter_string or "") and "!=" not in (filter_string or ""):
            return super().search_registered_models(
                filter_string, max_results, order_by, page_token
            )
        limit = _limit(max_results, _MOST_NAMES)
        found = [models.name_out(name, []) for name in self._names()]
        found = SearchModelUtils.filter(found, filter_string)
        page = _page(SearchModelUtils.sort(found, order_by), limit, page_token)
        for model in page:  # only for those that are shown
            model.latest_versions = self.get_latest_versions(model.name)
        return page

    def get_registered_model(self, name: str) -> Any:
        found = self._find_name(name)
        return super().get_registered_model(name) if found is None else self._name_out(found)

    def get_latest_versions(self, name: str, stages: list[str] | None = None) -> Any:
        if (found := self._find_name(name)) is None:
            return super().get_latest_versions(name, stages)
        wanted = {get_canonical_stage(stage) for stage in stages or ALL_STAGES}
        latest: dict[str, Any] = {}
        for asset in self._versions(name):  # newest first
            version = self._version_out(asset, found)
            if version.current_stage in wanted:
                latest.setdefault(version.current_stage, version)
        return [*latest.values()]

    def set_registered_model_tag(self, name: str, tag: Any) -> None:
        if (found := self._find_name(name)) is None:
            super().set_registered_model_tag(name, tag)
        else:
            self._put_name(replace(found, tags={**found.tags, tag.key: tag.value}))

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        if (found := self._find_name(name)) is None:
            super().delete_registered_model_tag(name, key)
        else:
            self._put_name(replace(found, tags=_without(found.tags, key)))

    def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
        if (found := self._find_name(name)) is None:
            super().set_registered_model_alias(name, alias, version)
            return
        self._asset(name, version)  # there must be one
        self._put_aliases(found, {**models.aliases(found), alias: str(version)})

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        if (found := self._find_name(name)) is None:
            super().delete_registered_model_alias(name, alias)
        else:
            self._put_aliases(found, _without(models.aliases(found), alias))

    def get_model_version_by_alias(self, name: str, alias: str) -> Any:
        if (found := self._find_name(name)) is None:
            return super().get_model_version_by_alias(name, alias)
        return self._version_out(self._asset(name, models.aliases(found).get(alias, alias)), found)

    # -- versions ----------------------------------------------------------------------

    def create_model_version(
        self,
        name: str,
        source: str,
        run_id: str | None = None,
        tags: list[Any] | None = None,
        run_link: str | None = None,
        description: str | None = None,
        local_model_path: str | None = None,
        model_id: str | None = None,
    ) -> Any:
        if (found := self._find_name(name)) is None:
            return super().create_model_version(
                name, source, run_id, tags, run_link, description, local_model_path, model_id
            )
        with models.said():
            location, made_in, type = models.source_in(
                self._house, self._runs, self._workspace(), source=source
            )
            kept = {"source": source, "run_id": run_id or made_in, "run_link": run_link}
            if model_id:
                kept["model_id"] = model_id
            asset = Asset(
                scope=self._workspace(),
                kind="model",
                name=name,
                type=type,
                location=location,
                description=description or "",
                tags=models.tags_in(tags),
                extras={OURS: {key: value for key, value in kept.items() if value}},
            )
            return self._version_out(assets.create(self._assets, asset), found)

    def update_model_version(self, name: str, version: str, description: str | None = None) -> Any:
        if (found := self._find_name(name)) is None:
            return super().update_model_version(name, version, description)
        asset = replace(self._asset(name, version), description=description or "")
        return self._version_out(self._put(asset), found)

    def transition_model_version_stage(
        self, name: str, version: str, stage: str, archive_existing_versions: bool
    ) -> Any:
        if (found := self._find_name(name)) is None:
            return super().transition_model_version_stage(
                name, version, stage, archive_existing_versions
            )
        stage = get_canonical_stage(stage)
        if archive_existing_versions and stage not in DEFAULT_STAGES_FOR_GET_LATEST_VERSIONS:
            raise models.failed(
                errors.Invalid(
                    f"Existing versions cannot be archived for the stage {stage!r}: only for "
                    f"{DEFAULT_STAGES_FOR_GET_LATEST_VERSIONS}"
                )
            )
        with self._assets.transaction():
            asset = self._asset(name, version)
            if archive_existing_versions:
                for other in self._versions(name):
                    if other.version != asset.version and models.stage(other) == stage:
                        self._put(models.staged(other, "Archived"))
            return self._version_out(self._put(models.staged(asset, stage)), found)

    def delete_model_version(self, name: str, version: str) -> None:
        if (found := self._find_name(name)) is None:
            super().delete_model_version(name, version)
            return
        asset = self._asset(name, version)
        kept = {alias: to for alias, to in models.aliases(found).items() if to != asset.version}
        with self._assets.transaction():
            assets.delete(self._assets, asset)
            self._put_aliases(found, kept)

    def get_model_version(self, name: str, version: str) -> Any:
        if (found := self._find_name(name)) is None:
            return super().get_model_version(name, version)
        return self._version_out(self._asset(name, version), found)

    def get_model_version_download_uri(self, name: str, version: str) -> str:
        if self._find_name(name) is None:
            return str(super().get_model_version_download_uri(name, version))
        with models.said():
            return models.source_out(self._house, self._asset(name, version))

    def search_model_versions(
        self,
        filter_string: str | None = None,
        max_results: int | None = None,
        order_by: list[str] | None = None,
        page_token: str | None = None,
    ) -> Any:
        if IS_PROMPT_TAG_KEY in (filter_string or "") and "!=" not in (filter_string or ""):
            return super().search_model_versions(filter_string, max_results, order_by, page_token)
        limit = _limit(max_results, _MOST_VERSIONS)
        found = []
        for asset, name in self._versions_in(filter_string):
            version = self._version_out(asset, name)
            version._version = Version(asset.version)
            found.append(version)
        found = SearchModelVersionUtils.filter(found, filter_string)
        return _page(SearchModelVersionUtils.sort(found, order_by or _NEWEST), limit, page_token)

    def set_model_version_tag(self, name: str, version: str, tag: Any) -> None:
        if self._find_name(name) is None:
            super().set_model_version_tag(name, version, tag)
            return
        asset = self._asset(name, version)
        self._put(replace(asset, tags={**asset.tags, tag.key: tag.value}))

    def delete_model_version_tag(self, name: str, version: str, key: str) -> None:
        if self._find_name(name) is None:
            super().delete_model_version_tag(name, version, key)
            return
        asset = self._asset(name, version)
        self._put(replace(asset, tags=_without(asset.tags, key)))

    # -- what is kept ------------------------------------------------------------------

    def _find_name(self, name: str) -> Name | None:
        return assets.find_name(self._assets, self._workspace(), "model", name)

    def _asset(self, name: str, version: str) -> Asset:
        with models.said():
            return assets.get(self._assets, self._workspace(), "model", name, str(version))

    def _names(self) -> Iterator[Name]:
        after: str | None = ""
        while after is not None:
            page = assets.names(
                self._assets, self._workspace(), "model", archived=None, after=after, limit=1000
            )
            yield from page.items
            after = page.next

    def _versions_in(self, filter_string: str | None) -> Iterator[tuple[Asset, Name]]:
        """Return what a filter can match: versions of the name that it has, or every version."""
        for clause in SearchModelVersionUtils.parse_search_filter(filter_string):
            if (clause["key"], clause["comparator"], clause["type"]) == ("name", "=", "attribute"):
                if (found := self._find_name(clause["value"])) is not None:
                    yield from ((asset, found) for asset in self._versions(found.name))
                return
        names = {name.name: name for name in self._names()}
        after: str | None = ""
        while after is not None:
            page = assets.every_version(self._assets, self._workspace(), "model", after=after)
            for asset in page.items:
                if asset.name in names and not asset.anonymous:
                    yield asset, names[asset.name]
            after = page.next

    def _versions(self, name: str) -> Iterator[Asset]:
        after: str | None = ""
        while after is not None:
            page = assets.versions(
                self._assets, self._workspace(), "model", name, archived=None, after=after
            )
            yield from (asset for asset in page.items if not asset.anonymous)
            after = page.next

    def _put(self, asset: Asset) -> Asset:
        return assets.update(self._assets, replace(asset, modified_at=ids.now()))

    def _put_name(self, name: Name) -> Name:
        return assets.update_name(self._assets, replace(name, modified_at=ids.now()))

    def _put_aliases(self, name: Name, aliases: dict[str, str]) -> None:
        ours = {**name.extras.get(OURS, {}), "aliases": aliases}
        self._put_name(replace(name, extras={**name.extras, OURS: ours}))

    def _name_out(self, name: Name) -> Any:
        return models.name_out(name, self.get_latest_versions(name.name))

    def _version_out(self, asset: Asset, name: Name) -> Any:
        short = self._get_dialect() != "sqlite"
        return models.version_out(self._house, asset, name, short=short)


def _without(kept: dict[str, str], key: str) -> dict[str, str]:
    return {name: value for name, value in kept.items() if name != key}


def _limit(asked: int | None, most: int) -> int:
    if not isinstance(asked, int) or not 1 <= asked <= most:
        raise models.failed(errors.Invalid(f"max_results must be from 1 to {most}, not {asked!r}"))
    return asked


def _page(found: list[Any], limit: int, token: str | None) -> Any:
    start = SearchUtils.parse_start_offset_from_page_token(token)
    end = start + limit
    return PagedList(
        found[start:end], SearchUtils.create_page_token(end) if end < len(found) else None
    )
