"""A folder of model files is filled all or not at all, also one that was filled before."""

from __future__ import annotations

from pathlib import Path

import pytest

from finery.recipes import folders


def fill(folder: Path, source: Path) -> None:
    with folders.filled(folder) as part:
        folders.link(source, part / source.name)
        folders.write_json(part / "config.json", {})
        (part / "base").mkdir()
        folders.link(source, part / "base" / source.name)


@pytest.mark.parametrize(("large", "linked"), [(0, True), (folders._LARGE, False)])
def test_a_folder_can_be_filled_again_with_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: int, linked: bool
) -> None:
    monkeypatch.setattr(folders, "_LARGE", large)
    source = tmp_path / "LICENSE"
    source.write_text("free")
    for _ in range(2):
        fill(tmp_path / "model", source)
    left = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert left == ["LICENSE", "base", "config.json"]
    assert (tmp_path / "model" / "LICENSE").read_text() == "free"
    assert (tmp_path / "model" / "LICENSE").samefile(source) == linked


def test_what_is_not_finished_leaves_what_was_there(tmp_path: Path) -> None:
    source = tmp_path / "LICENSE"
    source.write_text("free")
    fill(tmp_path / "model", source)
    with pytest.raises(RuntimeError), folders.filled(tmp_path / "model") as part:
        (part / "config.json").write_text("half")
        raise RuntimeError("the power went")
    assert (tmp_path / "model" / "config.json").read_text() == "{}\n"
    assert not (tmp_path / "model" / ".part").exists()
