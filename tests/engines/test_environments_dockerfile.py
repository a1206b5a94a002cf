"""What a Dockerfile installs, and what of it is named as not honoured."""

from pathlib import Path

import pytest

from finery.core.errors import Invalid, NotSupported
from finery.engines import dockerfile


@pytest.fixture
def context(tmp_path: Path):
    def make(text: str, **files: str) -> dockerfile.Read:
        for name, said in {
            "Dockerfile": text,
            "requirements.txt": "six==1.16.0\n",
            **files,
        }.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(said)
        return dockerfile.read(tmp_path, "Dockerfile")

    return make


GUIDE = """\
FROM mcr.microsoft.com/aifx/acpt/stable-ubuntu2004-cu117-py38-torch1131:biweekly.202311.1
USER root
RUN apt-get -y update && apt-get install -y --no-install-recommends \\
    # a comment in between
    git curl

# Install pip dependencies
COPY requirements.txt .
RUN pip install -r requirements.txt --no-cache-dir
RUN python -m pip install --upgrade pip && \\
    MAX_JOBS=4 pip install flash-attn==2.5.9 --no-build-isolation
ENV NCCL_DEBUG=INFO MODE="a b"
"""


def test_the_guides_context_is_read_whole(context) -> None:
    found = context(GUIDE)
    assert found.image.endswith("biweekly.202311.1")
    assert found.steps == (("six==1.16.0",), ("--no-build-isolation", "flash-attn==2.5.9"))
    assert found.variables == {"NCCL_DEBUG": "INFO", "MODE": "a b"}
    assert found.warnings == (
        "not honoured: Dockerfile line 3: apt-get -y update",
        "not honoured: Dockerfile line 3: apt-get install -y --no-install-recommends git curl",
    )


@pytest.mark.parametrize(
    ("line", "steps"),
    [
        ("pip install six", [("six",)]),
        ("pip3 install --no-cache-dir -q 'six>=1.15' einops", [("six>=1.15", "einops")]),
        ("pip3.11 install six", [("six",)]),
        ("/opt/venv/bin/pip install six", [("six",)]),
        ("python3 -m pip --no-cache-dir install six", [("six",)]),
        ("uv pip install --system six", [("six",)]),
        ("sudo pip install six", [("six",)]),
        ("conda run -n base pip install six", [("six",)]),
        ("pip install -r requirements.txt", [("six==1.16.0",)]),
        ("pip install -rrequirements.txt", [("six==1.16.0",)]),
        ("pip install --requirement=requirements.txt einops", [("six==1.16.0", "einops")]),
        ("pip install torch -i https://x.test/cpu && pip install six",
         [("--index-url https://x.test/cpu", "torch"), ("six",)]),
        ("pip install -f https://x.test/wheels six", [("--find-links https://x.test/wheels", "six")]),
        ("pip install six --no-deps", [("--no-deps", "six")]),
        ("pip install --pre six", [("--pre", "six")]),
        ("pip install --upgrade pip setuptools wheel", []),
        ("pip install git+https://x.test/a.git@v1", [("git+https://x.test/a.git@v1",)]),
        ("--mount=type=cache,target=/root/.cache pip install six", [("six",)]),
        ('["pip", "install", "six"]', [("six",)]),
        ("conda install -y -c conda-forge numpy=1.23 pytorch", [("numpy==1.23.*", "torch")]),
        ("<<EOF\npip install six\npip install einops\nEOF", [("six",), ("einops",)]),
        ("if true; then pip install six; fi", [("six",)]),
        ("set -ex; pip install six; rm -rf /tmp/x", [("six",)]),
    ],
)  # fmt: skip
def test_every_way_to_say_pip_install_is_understood(context, line: str, steps: list) -> None:
    found = context(f"FROM python:3.11\nRUN {line}\n")
    assert list(found.steps) == steps
    assert not found.warnings


@pytest.mark.parametrize(
    "line",
    ["apt-get install -y git", "make", "curl -sSL https://x.test/a.sh | bash", "pip download six",
     "python setup.py install", "pip install six --target /x", "npm ci"],
)  # fmt: skip
def test_what_else_it_does_is_named_with_its_line(context, line: str) -> None:
    found = context(f"FROM python:3.11\n\nRUN {line}\n")
    assert found.warnings and all("Dockerfile line 3" in one for one in found.warnings)


def test_a_file_is_found_where_the_image_would_have_it(context) -> None:
    text = """FROM python:3.11
ARG WHERE=/deps
WORKDIR /app
COPY reqs/train.txt ${WHERE}/all.txt
COPY reqs/ ./more/
RUN pip install -r $WHERE/all.txt
RUN cd more && pip install -r serve.txt
"""
    files = {"reqs/train.txt": "six\n", "reqs/serve.txt": "-r train.txt\neinops\n"}
    found = context(text, **files)
    assert found.steps == (("six",), ("six", "einops"))


def test_only_the_last_stage_counts_and_what_it_stands_on(context) -> None:
    text = """ARG TAG=3.11
FROM python:$TAG AS base
RUN pip install six
FROM node AS web
RUN npm ci
FROM base
COPY --from=web /dist /app
RUN pip install einops
ENTRYPOINT ["serve"]
"""
    found = context(text)
    assert found.image == "python:3.11" and found.steps == (("six",), ("einops",))
    assert [one.partition("line ")[2][0] for one in found.warnings] == ["7", "9"]


def test_a_conda_file_of_the_context_is_honoured(context) -> None:
    text = "FROM x\nCOPY env.yml /tmp/env.yml\nRUN conda env create -f /tmp/env.yml -n job\n"
    found = context(text, **{"env.yml": "dependencies: [python=3.9, {pip: [six]}]"})
    assert found.steps == (("six",),)
    assert any("python==3.9.*" in one for one in found.warnings)


def test_many_lines_that_are_not_honoured_are_counted(context) -> None:
    found = context("FROM x\n" + "RUN make it\n" * 100)
    assert len(found.warnings) == dockerfile.MOST_WARNINGS + 1
    assert "70 lines more" in found.warnings[-1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no FROM"),
        ("RUN pip install six\n", "line 1: RUN comes before FROM"),
        ("FROM python\n{json}\n", "line 2 is no instruction"),
        ("FROM python\nRUN pip install -r nowhere.txt\n", "nowhere.txt"),
        ("FROM python\nCOPY none.txt .\nRUN pip install -r none.txt\n", "no 'none.txt' in its"),
        ("FROM python\nRUN pip install -r ../../etc/passwd\n", "outside its folder|no '"),
        ("FROM python\nRUN pip install -r\n", "line 2: -r is given nothing"),
        ("FROM python\nRUN pip install six --target /x", ""),
    ],
)
def test_what_cannot_be_read_says_where(context, text: str, said: str) -> None:
    if not said:
        assert context(text).warnings
        return
    with pytest.raises((Invalid, NotSupported), match=said):
        context(text)


def test_files_outside_of_the_context_are_never_read(context, tmp_path: Path) -> None:
    (tmp_path.parent / "secret.txt").write_text("secret")
    (tmp_path / "link.txt").symlink_to(tmp_path.parent / "secret.txt")
    with pytest.raises(Invalid, match="outside its folder"):
        context("FROM python\nCOPY link.txt .\nRUN pip install -r link.txt\n")


def test_a_line_goes_on_over_comments_and_empty_lines(context) -> None:
    found = context("FROM python\nRUN pip install six \\\n\n  # why\n  einops\n")
    assert found.steps == (("six", "einops"),)


def test_a_pattern_finds_files_of_the_context_and_of_nowhere_else(context, tmp_path: Path) -> None:
    text = "FROM python\nCOPY {pattern} /r/\nRUN pip install -r /r/requirements.txt\n"
    for pattern in ("req*.txt", "/req*.txt"):
        assert context(text.format(pattern=pattern)).steps == (("six==1.16.0",),)
    (tmp_path.parent / "requirements-x.txt").write_text("secret")
    with pytest.raises(Invalid):
        context("FROM python\nCOPY ../req* /r/\nRUN pip install -r /r/requirements-x.txt\n")


def test_links_that_lead_in_a_circle_are_no_files(context, tmp_path: Path) -> None:
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    with pytest.raises(Invalid, match="loop.txt"):
        context("FROM python\nRUN pip install -r loop.txt\n")


def test_passwords_in_addresses_are_not_repeated(context) -> None:
    found = context("FROM x\nRUN curl https://me:secret@x.test/a\n")
    assert "secret" not in found.warnings[0] and "https://****@x.test/a" in found.warnings[0]


def test_another_user_and_a_volume_are_named_and_what_no_job_misses_is_not(context) -> None:
    said = context(
        "FROM x\nLABEL a=b\nEXPOSE 80\nWORKDIR /app\nUSER root\nUSER nobody\nVOLUME /data\n"
    ).warnings
    assert said == (
        "not honoured: Dockerfile line 6: USER nobody",
        "not honoured: Dockerfile line 7: VOLUME /data",
    )
