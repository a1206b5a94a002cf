"""Step 1: questions about pictures of documents, in a folder, and that folder as a data asset.

By default documents.py draws them; with `DATASET: HuggingFaceM4/DocumentVQA` in config.yml they
come from the hub. The columns are the same: image, question, answers and where they are from.
"""

from pathlib import Path

import documents
from azure.ai.ml import MLClient
from azure.ai.ml.constants import AssetTypes
from azure.ai.ml.entities import Data
from azure.core.exceptions import ResourceNotFoundError
from connect import CONFIG, client

SETTINGS = CONFIG["config"]


def make(folder: Path) -> None:
    """Write the splits train, validation and test as `load_from_disk` reads them."""
    if SETTINGS["DATASET"] == "made":
        rows = documents.arrow(folder, SETTINGS["DOCUMENTS"], seed=1)
    else:
        rows = fetch(folder, SETTINGS["DATASET"])
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


def get_or_create_data(ml_client: MLClient, name: str, folder: Path) -> Data:
    try:
        version = max(int(one.version) for one in ml_client.data.list(name=name))
        data = ml_client.data.get(name=name, version=str(version))
        print(f"Data: {name}, version {version}, was there already")
    except ResourceNotFoundError:
        data = ml_client.data.create_or_update(
            Data(
                name=name,
                path=str(folder),
                type=AssetTypes.URI_FOLDER,
                description="Questions about documents",
                tags={"FineTuningType": "Instruction", "Language": "En"},
            )
        )
        print(f"Data: {data.name}, version {data.version}")
    return data


if __name__ == "__main__":
    folder = Path(SETTINGS["DATA_DIR"])
    if not folder.exists():
        make(folder)
    get_or_create_data(client(), SETTINGS["AZURE_DATA_NAME"], folder)
