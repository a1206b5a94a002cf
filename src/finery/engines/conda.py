"""A conda file: its Python, its packages by their names on the package index, what has no such.

A package of conda is mapped where it is the same software; what belongs to the
system (compilers, CUDA) is left out and named.  Nothing is installed here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finery.core.errors import Invalid, NotSupported
from finery.engines import documents, requirements

RENAMED = {
    "dask-core": "dask",
    "faiss": "faiss-cpu",
    "fbprophet": "prophet",
    "matplotlib-base": "matplotlib",
    "msgpack-python": "msgpack",
    "opencv": "opencv-python-headless",
    "psycopg2": "psycopg2-binary",
    "py-opencv": "opencv-python-headless",
    "py-xgboost": "xgboost",
    "py-xgboost-cpu": "xgboost",
    "py-xgboost-gpu": "xgboost",
    "pytables": "tables",
    "python-flatbuffers": "flatbuffers",
    "python-graphviz": "graphviz",
    "pytorch": "torch",
    "pytorch-cpu": "torch",
    "pytorch-gpu": "torch",
    "ruamel_yaml": "ruamel.yaml",
    "seaborn-base": "seaborn",
    "tensorflow-gpu": "tensorflow",
}
SYSTEM = re.compile(
    r"pytorch-cuda|pytorch-mutex|cudatoolkit(-dev)?|cuda(-.*)?|cudnn|nccl|libcu.*|nvidia-.*"
    r"|openssl|ca-certificates|gcc.*|gxx.*|libgcc.*|libstdcxx.*|libgomp|compilers|c-compiler"
    r"|cxx-compiler|make|cmake|git|curl|wget|ffmpeg|openmpi|mpich|libgl.*|mkl(-.*)?|blas|libblas"
    r"|openblas|libopenblas|intel-openmp|llvm-openmp|_libgcc_mutex|_openmp_mutex|ncurses|readline"
    r"|sqlite|tk|xz|zlib|bzip2|libffi|ld_impl_.*|python_abi|libuuid|nodejs|openjdk|r-.*|nomkl"
)
_KEYS = {"name", "channels", "dependencies", "prefix", "variables"}
_SPEC = re.compile(r"(?:[\w./:-]+::)?([A-Za-z0-9_][\w.-]*)\s*(.*)", re.DOTALL)
_PART = re.compile(r"(===|==|>=|<=|!=|~=|=|>|<|)\s*([\w.*+!-]+)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # of a variable
MOST = 1000  # dependencies
LARGEST = 256 << 10  # characters


@dataclass(frozen=True)
class Read:
    python: str  # as `requirements` has it: "==3.10.*"; empty: any
    lines: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    by_conda: bool = False  # it names what only conda has


def read(text: str, *, folder: Path | None = None) -> Read:
    """Return what a conda file asks for.  Raises `Invalid` where it says nothing sensible.

    `folder`: where files that its pip section names are; None: nowhere.
    """
    document = _document(text)
    listed = document.get("dependencies") or []
    if not isinstance(listed, list) or len(listed) > MOST:
        raise Invalid(f"the conda file's dependencies are no list of at most {MOST}")
    specs, pip = _sorted(listed)
    found = of(specs)
    lines = requirements.read(pip, folder=folder, where="the conda file's pip section")
    unknown = [str(key)[:80] for key in document if key not in _KEYS and isinstance(key, str)]
    warnings = [f"not honoured: {key!r} of the conda file" for key in unknown]
    return Read(
        python=found.python,
        lines=(*found.lines, *lines.lines),
        variables=_variables(document.get("variables")),
        warnings=(*warnings, *found.warnings),
        notes=(*found.notes, *lines.notes),
        by_conda=found.by_conda,
    )


def of_pip(text: str) -> list[str]:
    """Return the names of the packages in the pip section of a conda file that was read before."""
    _, pip = _sorted(_document(text).get("dependencies") or [])
    return [name for name in map(requirements.name, pip) if name]


def of(specs: list[str]) -> Read:
    """Return what conda's own way of naming packages asks for."""
    python, lines, warnings, notes = "", [], [], []
    for spec in specs:
        package, version = _apart(spec)
        if package == "python":  # "python 3.8" is not the one release 3.8.0
            python = re.sub(r"^==(\d+\.\d+)$", r"==\1.*", version)
        elif package == "pip" and not version:
            continue
        elif SYSTEM.fullmatch(package):
            warnings.append(
                f"not honoured: {spec!r} of the conda file: it is no Python package; the "
                "machine's own is used where there is one"
            )
        else:
            name = RENAMED.get(package, package)
            if name != package:
                notes.append(f"{spec}: {name} of the package index, the same software")
            lines.append(f"{name}{version}")
    servers = requirements.read(lines, where="the conda file")
    return Read(
        python,
        servers.lines,
        warnings=tuple(warnings),
        notes=(*notes, *servers.notes),
        by_conda=bool(warnings),
    )


def _document(text: str) -> dict[Any, Any]:
    if len(text) > LARGEST:
        raise Invalid(f"the conda file is larger than {LARGEST >> 10} KiB")
    document = documents.read(text, where="the conda file")
    if not isinstance(document, dict):
        raise Invalid("the conda file is no mapping: it begins with `dependencies:`")
    return document


def _sorted(listed: list[Any]) -> tuple[list[str], list[str]]:
    """Return conda's own dependencies, and the lines of the pip section."""
    specs: list[str] = []
    pip: list[str] = []
    for entry in listed:
        if isinstance(entry, str):
            specs.append(entry)
        elif isinstance(entry, dict) and set(entry) == {"pip"}:
            inside = entry["pip"] or []
            if not isinstance(inside, list) or not all(isinstance(one, str) for one in inside):
                raise Invalid("the conda file's pip section is no list of texts")
            pip += inside
        else:
            # Never the whole of it: a small text can stand for an endless one in YAML.
            keys = (
                [key[:80] for key in entry if isinstance(key, str)]
                if isinstance(entry, dict)
                else []
            )
            said = ", ".join(keys[:3]) or type(entry).__name__
            raise NotSupported(f"a dependency of the conda file is not understood: {said}")
    if len(specs) + len(pip) > MOST:
        raise Invalid(f"the conda file has more than {MOST} dependencies")
    return specs, pip


def _variables(given: Any) -> dict[str, str]:
    if not given:
        return {}
    if not isinstance(given, dict):
        raise Invalid("the conda file's variables are no mapping")
    for name, value in given.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise Invalid("the conda file's variables have a name that cannot be one")
        if not isinstance(value, str) or "\0" in value:
            raise Invalid(f"the conda file's variable {name[:80]!r} is no text")
    return {**given}


def _apart(spec: str) -> tuple[str, str]:
    """Return a package's name in lower case, and its version as the package index has it."""
    found = _SPEC.fullmatch(spec.strip())
    if found is None or len(spec) > 500:
        raise Invalid(f"the conda file's dependency {spec[:80]!r} is not understood")
    name, rest = found.group(1).lower(), found.group(2).strip()
    if rest.startswith("["):
        asked = re.search(r"version\s*=\s*(?:'([^']*)'|\"([^\"]*)\"|([^,\]]+))", rest)
        rest = next(filter(None, asked.groups()), "") if asked else ""
        rest = rest if rest[:1] in "=<>!~" else f"=={rest}" if rest else ""
    return name, version(rest, spec)


def version(rest: str, spec: str) -> str:
    """Return `=1.2`, `1.2.*`, `>=1,<2`, `=1.2=build` as the package index says them."""
    if "|" in rest:  # one of several: the last, which is most often the newest
        sign = re.match(r"[=<>!~]*", rest)
        last = rest.split("|")[-1].strip()
        rest = last if last[:1] in "=<>!~" or not sign else f"{sign.group()}{last}"
    # A single = before a version means any that begins so; a second one begins the build.
    build = re.fullmatch(r"(==?\s*[\w.*+!]+)\s*[=\s]\s*[\w.*]+", rest) or re.fullmatch(
        r"([\w.*+!]+)\s+[\w.*]+", rest
    )
    said = build.group(1) if build else rest
    parts = []
    for part in (part.strip() for part in said.split(",")):
        if part.lstrip("=").strip() in ("", "*"):
            continue
        found = _PART.fullmatch(part)
        if found is None:
            raise Invalid(f"the conda file's dependency {spec[:80]!r} has no version in {part!r}")
        parts.append(_part(*found.groups()))
    return ",".join(parts)


def _part(operator: str, number: str) -> str:
    if operator in (">=", "<=", ">", "<"):
        return f"{operator}{number.removesuffix('.*')}"
    if operator == "=" and "*" not in number and number.count(".") < 2:
        return f"=={number}.*"
    number = re.sub(r"(?<=[^.])\*$", ".*", number)
    return f"{operator if operator in ('!=', '~=') else '=='}{number}"
