"""What a stranger's files may make the server read: so much and no more, and nothing outside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from finery.core.errors import Invalid, NotSupported
from finery.engines import conda, dockerfile, requirements, sharing, wanted

MANY = 50_000


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    (folder / "dist").mkdir(parents=True)
    (folder / "dist" / "x-1.whl").write_bytes(b"one")
    (tmp_path / "secret-1.whl").write_bytes(b"another's")
    return folder


def lines(context: Path, *said: str) -> tuple[str, ...]:
    return requirements.read([*said], folder=context, where="here").lines


# So much and no more.  Each of these took minutes or gigabytes when nothing stood in its way.


@pytest.mark.parametrize(
    "text",
    [
        "ENV A=xxxxxxxxxx\n" + "ENV A=$A$A\n" * 40,
        "ENV A=" + "x" * 200_000 + "\n" + "".join(f"ENV B{n}=$A\n" for n in range(100)),
        "ENV A=" + "x" * 200_000 + "\nENV" + "".join(f" B{n}=$A" for n in range(1000)),
        "RUN a" + "a\\\n" * 340_000 + "b\n",
        "RUN pip install six\n" * 4000,
        "RUN pip install azureml-defaults\n" * 4000,  # left out, and told of each time
        "RUN pip install six\n" * MANY,
        "RUN " + "cd a && " * 30_000 + "make\n",
        "WORKDIR a\n" * 4000,
        "RUN " + "<<E " * 50_000 + "\n",
        "COPY . /\n" * 4000 + "RUN pip install " + "./x " * 2000 + "\n",
        "COPY dist/* /x/\nRUN conda env create -f env.yml\n" * 2000,
    ],
)
def test_a_dockerfile_that_asks_for_an_endless_reading_is_refused(context: Path, text: str) -> None:
    (context / "env.yml").write_text("dependencies: [six]")
    (context / "Dockerfile").write_text(f"FROM x\n{text}")
    with pytest.raises(Invalid, match=r"Dockerfile"):
        dockerfile.read(context, "Dockerfile")


def test_a_pattern_of_many_stars_is_one_of_few(context: Path) -> None:
    (context / "/".join("abcdefghijklmnop")).mkdir(parents=True)
    (context / "Dockerfile").write_text("FROM x\n" + f"COPY {'**/' * 12}* /x/\n" * 1000)
    assert dockerfile.read(context, "Dockerfile").copied == {}


def test_what_is_long_and_harmless_is_read_and_counted(context: Path) -> None:
    text = "FROM x\nRUN " + "if " * 20_000 + "\nRUN " + "a;" * 30_000 + "\nRUN [" + '"\\' * 100_000
    (context / "Dockerfile").write_text(text)
    found = dockerfile.read(context, "Dockerfile")
    assert len(found.warnings) == dockerfile.MOST_WARNINGS + 1
    assert "lines more" in found.warnings[-1]


def test_files_that_name_files_are_counted_with_what_they_name(context: Path) -> None:
    for n in range(7):
        (context / f"r{n}.txt").write_text(f"-r r{n + 1}.txt\n" * 500)
    (context / "r7.txt").write_text("# nothing\n")
    with pytest.raises(Invalid, match="more than 2000 lines"):
        lines(context, "-r r0.txt")
    (context / "large.txt").write_text("# nothing at all\n" * MANY)
    with pytest.raises(Invalid, match="2 MiB of lines"):
        lines(context, *["-r large.txt"] * 50)


def test_a_line_that_no_installer_could_read_is_left_to_it() -> None:
    for line in ("six ; " + "(" * 20_000, "six ; sys_platform ~= 'x'"):
        assert not sharing.satisfied([line])
    huge = f"0x{'f' * 9000}"  # as a number, more digits than Python writes
    assert conda.read(f"dependencies: [six]\nvariables: {{X: {huge}}}").variables == {"X": huge}


# Nothing outside


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        ("dist/x-1.whl", "{0}"),
        ("./dist/x-1.whl[fast] ; python_version > '3'", "{0}[fast] ; python_version > '3'"),
        ("file:dist/x-1.whl", "{0}"),
        ("x @ file:dist/x-1.whl", "x @ file://{0}"),
        ("x[fast] @ ./dist/x-1.whl ; python_version > '3'",
         "x[fast] @ file://{0} ; python_version > '3'"),
        ("x @ file://{0}", "x @ file://{0}"),
        ("-e ./dist/x-1.whl", "{0}"),
        ("x @ https://x.test/x-1.whl", "x @ https://x.test/x-1.whl"),
        ("-e git+https://x.test/a.git#egg=a", "git+https://x.test/a.git#egg=a"),
        ("six>=1.0 ; python_version > '3'", "six>=1.0 ; python_version > '3'"),
    ],
)  # fmt: skip
def test_a_file_is_taken_however_it_is_named(context: Path, line: str, taken: str) -> None:
    place = str(context / "dist" / "x-1.whl")
    assert lines(context, line.replace("{0}", place)) == (taken.replace("{0}", place),)


@pytest.mark.parametrize(
    "line",
    ["../secret-1.whl", "dist/../../secret-1.whl", "{0}", "file://{0}", "FILE:{0}",
     "x @ file://{0}", "x@{0}", "x @ ../secret-1.whl", "x[a] @ file://localhost{0} ; os_name=='a'",
     "x @ file:///..%2f..%2f{0}", "-e file://{0}", "-e ../secret-1.whl", "-f ..", "-f file://{1}",
     "-i file://{1}", "--extra-index-url {1}", "git+file://{1}", "x @ git+file://{1}",
     "-e git+file://{1}#egg=x", "x @ ${HOME}/secret-1.whl", "-c ../c.txt", "-c named.txt",
     "secret-1.whl"],
)  # fmt: skip
def test_a_file_outside_is_refused_however_it_is_named(
    context: Path, tmp_path: Path, line: str
) -> None:
    secret = str(tmp_path / "secret-1.whl")
    (context / "named.txt").write_text(f"x @ file://{secret}\n")
    (context / "secret-1.whl").symlink_to(secret)
    with pytest.raises((Invalid, NotSupported)):
        lines(context, line.replace("{0}", secret).replace("{1}", str(tmp_path)))


@pytest.mark.parametrize("line", ["x @ file:///etc/x.whl", "dist/x.whl", "x.whl", "-f /srv"])
def test_a_file_that_cannot_have_come_along_is_refused(line: str) -> None:
    with pytest.raises(NotSupported, match="did not come with it"):
        conda.read(f"dependencies: [pip: ['{line}']]")


def test_a_file_of_the_image_is_the_contexts(context: Path) -> None:
    (context / "Dockerfile").write_text(
        "FROM x\nCOPY dist /app/dist\nRUN pip install 'x @ file:///app/dist/x-1.whl'\n"
        "WORKDIR /app\nRUN pip install dist/x-1.whl\n"
    )
    place = context / "dist" / "x-1.whl"
    found = dockerfile.read(context, "Dockerfile")
    assert found.steps == ((f"x @ file://{place}",), (str(place),))


@pytest.mark.parametrize(
    "line", ["dist/x-1.whl", "x @ file:dist/x-1.whl", "./dist/x-1.whl[fast]", "-f dist", "-e dist"]
)
def test_what_a_named_file_says_makes_a_difference(
    context: Path, tmp_path: Path, line: str
) -> None:
    wish: Callable[[Path], wanted.Wanted] = lambda folder: wanted.Wanted(  # noqa: E731
        folder=str(folder), steps=(requirements.read([line], folder=folder, where="").lines,)
    )
    before = wish(context).key()
    moved = context.rename(tmp_path / "moved")
    assert wish(moved).key() == before  # where it lies makes none
    (moved / "dist" / "x-1.whl").write_bytes(b"two")
    assert wish(moved).key() != before
