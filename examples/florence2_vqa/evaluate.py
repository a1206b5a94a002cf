"""Step 4: ask the endpoint what is on documents that no training saw, and score its answers.

The base model's scores on the same documents are in the job's metrics: the training script asked
it the same questions before the first step.
"""

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import datasets
from azure.ai.ml import MLClient
from connect import CONFIG, HERE, client, recall, remember

sys.path.append(str(HERE / "src_train"))
import scores  # the training's own measure

TOGETHER = 8  # questions in one call
SHOWN = 4


def held_back(count: int) -> list[dict[str, Any]]:
    """Rows of the test split, spread over all of it."""
    rows = datasets.load_from_disk(CONFIG["config"]["DATA_DIR"])["test"]
    count = min(count, len(rows))
    return [rows[at * len(rows) // count] for at in range(count)]


def request_for(row: dict[str, Any]) -> dict[str, Any]:
    """A row as the scoring script takes it."""
    file = io.BytesIO()
    row["image"].convert("RGB").save(file, "PNG")
    return {
        "task_prompt": "DocVQA",
        "text_input": row["question"],
        "image_input": base64.b64encode(file.getvalue()).decode(),
        "params": {"max_new_tokens": 64, "num_beams": 3},
    }


def ask(ml_client: MLClient, rows: list[dict[str, Any]]) -> list[str]:
    """What the endpoint answers, a few questions at a time."""
    file, answers = Path("inference-test") / "held-back.json", []
    file.parent.mkdir(exist_ok=True)
    for start in range(0, len(rows), TOGETHER):
        file.write_text(json.dumps([request_for(row) for row in rows[start : start + TOGETHER]]))
        said = ml_client.online_endpoints.invoke(
            endpoint_name=recall()["endpoint"],
            deployment_name=recall()["deployment"],
            request_file=str(file),
        )
        answers += [one["answer"] for one in json.loads(said)]
    return answers


if __name__ == "__main__":
    rows = held_back(64)
    answers = ask(client(), rows)
    pairs = list(zip(rows, answers, strict=True))
    for row, said in pairs[:: max(1, len(pairs) // SHOWN)][:SHOWN]:
        wrong = f"it is {' or '.join(row['answers'])}"
        right = "right" if scores.exact_match(said, row["answers"]) else wrong
        print(f"  {row['question']}\n    -> {said}   ({right})")
    anls = sum(scores.anls(said, row["answers"]) for row, said in pairs) / len(pairs)
    exact = sum(scores.exact_match(said, row["answers"]) for row, said in pairs) / len(pairs)
    remember(endpoint_anls=anls, endpoint_exact_match=exact, asked=len(pairs))
    print(f"The endpoint on {len(pairs)} held-back questions: ANLS {anls:.3f}, exact {exact:.0%}")
