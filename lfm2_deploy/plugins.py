"""What other packages offer through entry points: read from their metadata, nothing imported.

A package declares, in its pyproject.toml,

    [project.entry-points."lfm2_deploy.targets"]
    acme = "acme_lfm2.target:ACME"

and from then on `acme` is a target. What enters is installed packages' metadata; what leaves
are names and places. Importing them is `registry`'s business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

Kind = Literal["runtime", "target", "set of lint rules", "probe", "ort provider"]

GROUPS: dict[Kind, str] = {
    "runtime": "lfm2_deploy.runtimes",
    "target": "lfm2_deploy.targets",
    "set of lint rules": "lfm2_deploy.lints",
    "probe": "lfm2_deploy.probes",
    "ort provider": "lfm2_deploy.ort_providers",
}
# What a user types and a file name holds; targets are looked up in lower case.
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
# Names of execution providers are onnxruntime's, such as "AcmeExecutionProvider".
_PROVIDER = re.compile(r"\w[\w.-]*")
_RESERVED = {"auto"}


@dataclass(frozen=True, slots=True)
class Plugin:
    """One thing that another package offers.

    Args:
        kind: what it is.
        name: what users call it.
        package: the distribution that brings it.
        version: of that distribution.
        value: the entry point's text, "module:attribute" or, where that is enough, "module".
    """

    kind: Kind
    name: str
    package: str
    version: str
    value: str

    @property
    def module(self) -> str:
        """Module to import."""
        return self.value.partition(":")[0].strip()

    @property
    def attribute(self) -> str:
        """What to take from it, maybe dotted; "" for the module itself."""
        return self.value.partition(":")[2].partition("[")[0].strip()

    def describe(self) -> str:
        """For people: "target 'acme' of package acme-lfm2 1.0"."""
        return f"{self.kind} {self.name!r} of package {self.package} {self.version}"


def list_plugins(kind: Kind) -> tuple[Plugin, ...]:
    """What installed packages offer of a kind, by name; a name may come twice."""
    found = metadata.entry_points(group=GROUPS[kind])
    plugins = {
        Plugin(kind, point.name, point.dist.name, point.dist.version, point.value)
        for point in found
        if point.dist is not None
    }
    return tuple(sorted(plugins, key=lambda plugin: (plugin.name, plugin.package)))


def find_fault(plugin: Plugin) -> str | None:
    """What makes a plugin's name unusable; None if nothing does."""
    pattern = _PROVIDER if plugin.kind == "ort provider" else _NAME
    if not pattern.fullmatch(plugin.name):
        return (
            f"{plugin.describe()} is not used: a name has lower-case letters, digits and . _ - "
            "only; tell its makers"
        )
    if plugin.name in _RESERVED:
        return f"{plugin.describe()} is not used: that name has a meaning already; tell its makers"
    return None


def find_clashes(plugins: tuple[Plugin, ...]) -> dict[str, str]:
    """Name -> why it cannot be used, for names that several packages offer."""
    by_name: dict[str, list[Plugin]] = {}
    for plugin in plugins:
        by_name.setdefault(plugin.name, []).append(plugin)
    return {
        name: (
            f"{same[0].kind} {name!r} is offered by several packages, "
            f"{' and '.join(plugin.package for plugin in same)}: uninstall all but one"
        )
        for name, same in by_name.items()
        if len(same) > 1
    }
