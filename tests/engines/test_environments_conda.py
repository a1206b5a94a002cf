"""What a conda file asks for, in the words of the package index."""

import pytest

from finery.core.errors import Invalid, NotSupported
from finery.engines import conda

# A few lines that stand for a text of gigabytes.
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, after in zip("abcdefgh", "bcdefghi", strict=True)
)
# The same for who heeds that one mapping is merged into another.
MERGES = "a: &a {x: y}\n" + "".join(
    f"{after}: &{after} {{<<: [{', '.join([f'*{before}'] * 10)}]}}\n"
    for before, after in zip("abcdefghijklmnopq", "bcdefghijklmnopqr", strict=True)
)


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("numpy", "numpy"),
        ("numpy=1.23.5", "numpy==1.23.5"),
        ("numpy=1.23", "numpy==1.23.*"),
        ("numpy=1", "numpy==1.*"),
        ("numpy==1.23", "numpy==1.23"),
        ("numpy>=1.21,<2", "numpy>=1.21,<2"),
        ("numpy >=1.21, <2", "numpy>=1.21,<2"),
        ("numpy=1.23.*", "numpy==1.23.*"),
        ("numpy 1.23.*", "numpy==1.23.*"),
        ("numpy 1.23.5", "numpy==1.23.5"),
        ("numpy=1.23.5=py310h53a5b5f_0", "numpy==1.23.5"),
        ("numpy 1.23.5 py310h53a5b5f_0", "numpy==1.23.5"),
        ("numpy==1.23.5=py310*", "numpy==1.23.5"),
        ("numpy!=1.24", "numpy!=1.24"),
        ("numpy~=1.24.1", "numpy~=1.24.1"),
        ("numpy=1.2*", "numpy==1.2.*"),
        ("numpy=1.22|1.23", "numpy==1.23.*"),
        ("conda-forge::numpy=1.23.5", "numpy==1.23.5"),
        ("conda-forge/linux-64::numpy", "numpy"),
        ("numpy[version='>=1.21,<2', build=x]", "numpy>=1.21,<2"),
        ("numpy=*", "numpy"),
        ("Pillow=9.0.1", "pillow==9.0.1"),
        ("pip=23.0.1", "pip==23.0.1"),
        ("pytorch=2.1", "torch==2.1.*"),
        ("opencv", "opencv-python-headless"),
        ("py-xgboost=1.7.6", "xgboost==1.7.6"),
        ("pyyaml", "pyyaml"),
        ("certifi=2023.07.22", "certifi==2023.07.22"),
    ],
)
def test_condas_way_of_naming_versions_is_said_as_the_index_does(spec: str, line: str) -> None:
    assert conda.of([spec]).lines == (line,)


@pytest.mark.parametrize(
    ("asked", "python"),
    [("python=3.10", "==3.10.*"), ("python>=3.8,<3.11", ">=3.8,<3.11"), ("python", ""),
     ("python=3.10.4", "==3.10.4"), ("python 3.8", "==3.8.*")],
)  # fmt: skip
def test_the_python_is_told_apart_from_the_packages(asked: str, python: str) -> None:
    found = conda.read(f"dependencies: ['{asked}', pip, six]")
    assert (found.python, found.lines) == (python, ("six",))


def test_what_is_no_python_package_is_named_and_left_out() -> None:
    found = conda.read("dependencies: [pytorch-cuda=11.8, gcc_linux-64, openssl, numpy]")
    assert found.lines == ("numpy",) and found.by_conda
    assert ["pytorch-cuda=11.8" in found.warnings[0], "gcc_linux-64" in found.warnings[1]]
    assert len(found.warnings) == 3


def test_the_pip_section_comes_along_with_its_options() -> None:
    text = """
    dependencies:
      - python=3.11
      - pip:
        - --extra-index-url https://example.test/simple
        - torch==2.3.0+cpu  # the small one
        - 'six @ https://example.test/six.whl'
        - --pre
        - azureml-defaults==1.53.0
        - azureml-inference-server-http~=1.3
        - azureml-mlflow
    variables: {MODE: quiet, N: 3}
    """
    found = conda.read(text)
    assert found.lines == (
        "--extra-index-url https://example.test/simple",
        "torch==2.3.0+cpu",
        "six @ https://example.test/six.whl",
        "--pre",
        "azureml-mlflow",
    )
    assert [note.partition(":")[0] for note in found.notes] == [
        "azureml-defaults==1.53.0",
        "azureml-inference-server-http~=1.3",
    ]
    assert found.variables == {"MODE": "quiet", "N": "3"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b", "no mapping"),
        ("dependencies: 7", "no list"),
        ("dependencies: [{pip: 7}]", "no list of texts"),
        ("dependencies: [{npm: [a]}]", "npm"),
        ("a: [", "no YAML"),
        ("dependencies: ['numpy=not a version!']", "numpy"),
        ("dependencies: ['; rm -rf /']", "rm -rf"),
        ("dependencies: [{pip: ['-r requirements.txt']}]", "did not come with it"),
        ("dependencies: [{pip: ['-e .']}]", "did not come with it"),
        ("dependencies: [{pip: ['--target /etc x']}]", "--target"),
        ("!!python/object/apply:os.system ['true']", "no mapping"),
        ("[" * 100_000, "no YAML: it is more than 50 deep"),
        ("- " * 100_000, "no YAML"),
        (MERGES + "dependencies: 7", "no list"),
        ("dependencies: [" + "a," * 1001 + "]", "at most 1000"),
        ("x: " + "a" * (1 << 20), "larger than 256 KiB"),
        ("variables: {'A=B': c}", "cannot be one"),
        ("variables: {A: [b]}", "'A' is no text"),
        (BOMB + "dependencies: [{npm: *i}]", "npm"),
        (BOMB + "dependencies: [*i]", "list"),
        (BOMB + "variables: {A: *i}", "'A' is no text"),
        (BOMB + "variables: *i", "no mapping"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises((Invalid, NotSupported), match=said):
        conda.read(text)


def test_unknown_keys_are_named() -> None:
    assert "'platforms'" in conda.read("platforms: [linux-64]\ndependencies: [six]").warnings[0]
