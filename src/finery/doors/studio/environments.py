"""What a page says of the environment that a job or a deployment runs in.

Which packages it has is for `docs/environments.md`; how it is built, for the
engines.  What could not be honoured of it is among the warnings of who uses it.
"""

from __future__ import annotations

from dataclasses import dataclass

from finery.core import assets, instances
from finery.core.assets import Asset
from finery.core.endpoints import Deployment
from finery.core.errors import Failure
from finery.core.jobs import Command, Job
from finery.doors.http import House
from finery.doors.studio import concealing, places

_LONGEST = 4000  # characters of a conda file that are shown


@dataclass(frozen=True, kw_only=True)
class Environment:
    name: str
    what: str  # what it is made from, in a few words
    state: str
    recipe: str = ""  # the conda file
    log: str = ""  # of its building
    built: bool = True  # whether that is over, and there are other things to see


def of_job(house: House, job: Job, command: Command, *, log: str) -> Environment:
    """Return what there is to say of a job's.  `log`: of its building."""
    name, what, recipe = _made_from(house, command.environment)
    if not command.environment or what == _CURATED:
        return Environment(name=name, what=what, state="ready")
    ran = job.started_at is not None and job.started_at != job.ended_at
    if ran or job.status in ("running", "finalizing", "completed"):
        return Environment(name=name, what=what, recipe=recipe, state="ready", log=log)
    if job.status == "failed":
        state = "could not be built" if log else "was not ready when the job failed"
    elif job.final:
        state = "was not needed: the job never ran"
    elif job.status == "queued":
        state = "is made ready when the job's turn comes"
    else:
        state = "is being built" if log else "is being made ready"
    return Environment(name=name, what=what, recipe=recipe, state=state, log=log, built=False)


def of_deployment(house: House, deployment: Deployment, *, chat: bool) -> Environment:
    """Return what there is to say of a deployment's; its log is the deployment's own.

    `chat`: our own engine serves it, which runs with our own packages.
    """
    try:
        asset = instances.environment(house.store, deployment)
    except Failure:
        asset = None
    if asset is not None and asset.kind == "model" and not chat:
        name, what, recipe = _models_own(house, asset)
    else:
        name, what, recipe = _made_from(house, deployment.spec.environment)
    ready = any(id in deployment.addresses for id in instances.processes(deployment))
    # One that nobody calls may have no instance, and one whose instances fell has none for a while.
    if ready or deployment.status in ("ready", "unhealthy") or what in (_OWN, _CURATED, ""):
        state = "ready"
    elif deployment.status == "failed":
        state = "nothing runs in it, for the reason above"
    else:
        state = "is being made ready"
    return Environment(name=name, what=what, recipe=recipe, state=state)


_OWN = "the packages that Finery itself runs with"
_CURATED = "one of the catalog's, which is Finery's own packages"


def _models_own(house: House, model: Asset) -> tuple[str, str, str]:
    """Return where a model runs that no environment is named for; ours needs no building."""
    lacking = house.lacking(model)
    if lacking is None:
        return "the model's own", "the packages that the model asks for", ""
    has = "which lacks some of what" if lacking else "which has all that"
    return f"Finery's own Python, {has} the model asks for", "", ""


def _made_from(house: House, ref: str) -> tuple[str, str, str]:
    if not ref:
        return "Finery's own", _OWN, ""
    name = places.place(ref).text
    try:
        asset: Asset = assets.by_ref(house.store, ref)
    except Failure:
        return name, "it is not there any more", ""
    match asset.spec.get("kind"):
        case "curated":
            return name, _CURATED, ""
        case "build":
            return name, f"built from a folder with a {asset.spec['dockerfile']}", ""
        case "conda":
            recipe = concealing.hidden(asset.spec.get("conda", "")[:_LONGEST])
            return (
                name,
                f"the packages of a conda file{_image(house, asset, ', asked for on')}",
                recipe,
            )
        case _:
            return name, _image(house, asset, "").strip(), ""


def _image(house: House, asset: Asset, before: str) -> str:
    """Name the image of an environment, and say where it is not used."""
    image = asset.spec.get("image")
    if not image:
        return ""
    if house.containers() != "":  # one runs here, or it is not known yet
        return f"{before} the image {image}"
    return f"{before} the image {image}, which is not used here: no Docker or Podman"
