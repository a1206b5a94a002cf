"""Call the endpoint with held-back questions: phrasings that the training never saw."""

import json
from pathlib import Path

from connect import CONFIG, HERE, clients, recall, remember

workspace, _ = clients()
rows = [json.loads(line) for line in (HERE / "data/test_sft.jsonl").open(encoding="utf-8")]
picked = rows[:: max(1, len(rows) // CONFIG["questions"])][: CONFIG["questions"]]
request, right = Path("phi3_chat_request.json"), 0
for row in picked:
    question, expected = row["messages"][:-1], row["messages"][-1]["content"]
    parameters = {"temperature": 0.0, "do_sample": False, "max_new_tokens": 60}
    body = {"input_data": {"input_string": [question], "parameters": parameters}, "params": {}}
    request.write_text(json.dumps(body))
    answer = workspace.online_endpoints.invoke(
        endpoint_name=recall()["endpoint"], deployment_name="demo", request_file=str(request)
    )
    said = json.loads(answer)["output"].strip()
    right += said == expected.strip()
    mark = "right" if said == expected.strip() else f"expected: {expected}"
    print(f"  {question[-1]['content']}\n    -> {said}   ({mark})")
print(f"The endpoint answers {right} of {len(picked)} held-back questions to the letter.")
remember(asked=len(picked), right=right)
