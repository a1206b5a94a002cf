"""Step 1: questions about pictures of documents, in a folder, and that folder as a data asset.

By default documents.py draws them; with `DATASET: HuggingFaceM4/DocumentVQA` in config.yml they
come from the hub. The columns are the same: image, question, answers and where they are from.

A folder that is there is used as it is, and a version that holds the same bytes is not made again.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import documents
from azure.ai.ml import MLClient
from azure.ai.ml.constants import AssetTypes
from azure.ai.ml.entities import Data
from azure.core.exceptions import ResourceNotFoundError
from connect import CONFIG, client, remember

SETTINGS = {"SEED": 1, **CONFIG["config"]}
NOTE = "made_from.json"  # in the folder: the settings that it was made with
DIGEST = "sha256"  # the tag that says what a version holds


def asked() -> dict[str, Any]:
    """The settings that the data depends on."""
    names = ["DATASET", "IS_DEBUG"]
    if SETTINGS["DATASET"] == "made":
        names = ["DATASET", "DOCUMENTS", "SEED"]
    elif SETTINGS["IS_DEBUG"]:
        names.append("DEBUG_ROWS")
    return {name: SETTINGS[name] for name in names}


def make(folder: Path) -> None:
    """Write the splits train, validation and test as `load_from_disk` reads them."""
    if SETTINGS["DATASET"] == "made":
        rows = documents.arrow(folder, SETTINGS["DOCUMENTS"], seed=SETTINGS["SEED"])
    else:
        rows = fetch(folder, SETTINGS["DATASET"])
    (folder / NOTE).write_text(json.dumps(asked(), indent=2))
    said = ", ".join(f"{count} for {split}" for split, count in rows.items())
    print(f"Questions: {said}, in {folder}")


def fetch(folder: Path, name: str) -> dict[str, int]:
    from datasets import load_dataset

    splits = load_dataset(name)
    if SETTINGS["IS_DEBUG"]:
        for split, count in SETTINGS["DEBUG_ROWS"].items():
            splits[split] = splits[split].select(range(min(count, len(splits[split]))))
    splits.save_to_disk(str(folder))
    return {split: len(rows) for split, rows in splits.items()}


def look(folder: Path) -> None:
    """Say what is in a folder that was there already, if it is not what config.yml asks for."""
    note, wanted = folder / NOTE, asked()
    if not note.is_file():
        print(
            f"Questions: those in {folder}, as they are; there is no {NOTE} to tell who made them"
        )
        return
    holds = json.loads(note.read_text())
    if holds == wanted:
        print(f"Questions: those in {folder}, made before with the same settings")
        return
    print(
        f"Questions: those in {folder}, which are NOT what config.yml asks for.\n"
        f"  made with: {holds}\n  asked for: {wanted}\n"
        f"  They are used as they are; delete {folder} and run this again to make what is asked for"
    )


def digest(folder: Path) -> str:
    """One number for all names and bytes in a folder."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            held = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{path.relative_to(folder).as_posix()}\n{held}\n".encode())
    return whole.hexdigest()


def get_or_create_data(ml_client: MLClient, name: str, folder: Path) -> Data:
    """The newest version if it holds what the folder holds, or else one more."""
    holds, before = digest(folder), ""
    try:
        version = max(int(one.version) for one in ml_client.data.list(name=name))
        data = ml_client.data.get(name=name, version=str(version))
        if (data.tags or {}).get(DIGEST) != holds:
            before = f"; version {version} does not hold what is in {folder} now"
            raise ResourceNotFoundError(before)
        print(f"Data: {name}, version {version}, was there already, with the same bytes")
    except ResourceNotFoundError:
        data = ml_client.data.create_or_update(
            Data(
                name=name,
                path=str(folder),
                type=AssetTypes.URI_FOLDER,
                description="Questions about documents",
                tags={"FineTuningType": "Instruction", "Language": "En", DIGEST: holds},
            )
        )
        print(f"Data: {data.name}, version {data.version}, made from {folder}{before}")
    return data


if __name__ == "__main__":
    folder = Path(SETTINGS["DATA_DIR"])
    if folder.exists():
        look(folder)
    else:
        make(folder)
    data = get_or_create_data(client(), SETTINGS["AZURE_DATA_NAME"], folder)
    remember(data_name=data.name, data_version=data.version)
