"""How a deployment's number of instances follows its load, as Azure writes it and as we do."""

from __future__ import annotations

from typing import Any

from finery.core.errors import Invalid, NotSupported
from finery.core.scaling import Scaling
from finery.doors.azureml import durations, wire

_FIELD = "scaleSettings"
_KNOWN = ("minInstances", "maxInstances", "pollingInterval", "targetUtilizationPercentage")
_LONGEST = 3600.0  # seconds between looks


def rule_in(given: Any, *, most: int) -> Scaling | None:
    """Return the rule that is asked for; None for a number of instances that is fixed."""
    doc = wire.mapping(given, _FIELD)
    kind = str(doc.get("scaleType") or "Default")
    if kind.lower() in ("default", "manual"):
        return None
    if kind.lower() != "targetutilization":
        raise NotSupported(
            f"scale settings of type {kind!r} are not supported here: Default and "
            "TargetUtilization are",
            target=_FIELD,
        )
    wire.refuse_unknown(doc, ("scaleType", *_KNOWN), _FIELD)
    usual = Scaling()
    least = _whole(doc, "minInstances", usual.least, 0, most)
    polling = usual.polling
    if doc.get("pollingInterval") is not None:
        polling = durations.seconds_in(doc["pollingInterval"], field=f"{_FIELD}.pollingInterval")
    if not 0 < polling <= _LONGEST:
        raise Invalid(
            f"{_FIELD}.pollingInterval is {polling:g} s; it must be up to an hour",
            target=f"{_FIELD}.pollingInterval",
        )
    return Scaling(
        least=least,
        most=_whole(doc, "maxInstances", max(usual.most, least), max(least, 1), most),
        target=_whole(doc, "targetUtilizationPercentage", usual.target, 1, 100),
        polling=polling,
    )


def rule_out(rule: Scaling | None) -> dict[str, Any]:
    if rule is None:
        return {"scaleType": "Default"}
    return {
        "scaleType": "TargetUtilization",
        "minInstances": rule.least,
        "maxInstances": rule.most,
        "pollingInterval": durations.seconds_out(rule.polling),
        "targetUtilizationPercentage": rule.target,
    }


def _whole(doc: Any, name: str, default: int, least: int, most: int) -> int:
    value = doc.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Invalid(
            f"{_FIELD}.{name} is {str(value)[:40]!r}; it must be a whole number from {least} "
            f"to {most}",
            target=f"{_FIELD}.{name}",
        )
    return value
