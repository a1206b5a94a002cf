"""A chat model as MLflow loads it: this file is copied into the model and run there.

So it imports nothing of ours: transformers, torch and pandas are all it needs, and
peft for an adapter.  MLflow runs the file to get the model (the last line), the
one place where something happens at import.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow.models
import mlflow.pyfunc

MAX_NEW_TOKENS = 256


class ChatModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Conversations in, the assistant's answers out."""

    def load_context(self, context: Any) -> None:
        """Loads the checkpoint that lies in the artifact `model`."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = Path(context.artifacts["model"])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        adapter = folder / "adapter_config.json"
        base = folder
        if adapter.is_file():
            named = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
            base = folder / "base" if (folder / "base").is_dir() else named
        dtype = "auto" if device == "cuda" else "float32"
        model = AutoModelForCausalLM.from_pretrained(str(base), dtype=dtype)
        if adapter.is_file():
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(folder))
        self.model = model.to(device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(str(folder))

    # Types here would be a schema to MLflow, and not one it takes.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """A data frame with one `output` for each conversation.

        Taken are a list of messages, a list of such lists, {"input_string": either,
        "parameters": {…}}, the same under `input_data`, and a frame with a column
        `input_string`.
        """
        import pandas

        conversations, settings = read(model_input)
        settings = {**{k: v for k, v in (params or {}).items() if v is not None}, **settings}
        return pandas.DataFrame({"output": [self.answer(one, settings) for one in conversations]})

    def answer(self, messages: list[dict[str, Any]], settings: dict[str, Any]) -> str:
        """One answer; greedy unless a temperature above 0 and do_sample ask for sampling."""
        import torch

        prompt = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        batch = self.tokenizer(
            prompt, return_tensors="pt", add_special_tokens=False, return_token_type_ids=False
        ).to(self.model.device)
        heat = float(settings.get("temperature", 0.0))
        sampling: dict[str, Any] = {"do_sample": False}
        if heat > 0 and settings.get("do_sample", True):
            top = float(settings.get("top_p", 1.0))
            sampling = {"do_sample": True, "temperature": heat, "top_p": top}
        with torch.inference_mode():
            made = self.model.generate(
                **batch,
                **sampling,
                max_new_tokens=int(settings.get("max_new_tokens", MAX_NEW_TOKENS)),
                eos_token_id=self.stops(),
                pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
            )
        fresh = made[0, batch["input_ids"].shape[1] :]
        text = str(self.tokenizer.decode(fresh, skip_special_tokens=True)).strip()
        return prompt + text if settings.get("return_full_text", False) else text

    def stops(self) -> list[int]:
        """The model's and the tokenizer's ends, and the end of a turn."""
        given = self.model.generation_config.eos_token_id
        found = [given] if isinstance(given, int) else list(given or [])
        found.append(self.tokenizer.eos_token_id)
        mark = "finery"
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": mark}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False)
        after = self.tokenizer(text.rpartition(mark)[2], add_special_tokens=False)["input_ids"]
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        found += after[:1] if after and after[0] in special else []
        return [end for end in dict.fromkeys(found) if end is not None]


def read(given: Any) -> tuple[list[list[dict[str, Any]]], dict[str, Any]]:
    """(conversations, parameters) of any of the shapes that are taken."""
    settings: dict[str, Any] = {}
    if hasattr(given, "to_dict") and hasattr(given, "columns"):
        columns = list(given.columns)
        if "parameters" in columns and len(given):
            settings = dict(given["parameters"].iloc[0] or {})
        given = list(given["input_string"]) if "input_string" in columns else None
    if isinstance(given, dict) and "input_data" in given:
        given = given["input_data"]
    if isinstance(given, dict):
        settings = {**settings, **(given.get("parameters") or {})}
        given = given.get("input_string", given.get("messages"))
    found = _conversations(given)
    if not found:
        raise ValueError("input_string: expected a list of messages with role and content")
    return found, settings


def _conversations(given: Any) -> list[list[dict[str, Any]]]:
    if given is None:
        return []
    if isinstance(given, str):
        return [[{"role": "user", "content": given}]]
    given = list(given)
    if given and all(isinstance(message, dict) and "role" in message for message in given):
        return [given]
    return [one for part in given for one in _conversations(part)]


mlflow.models.set_model(ChatModel())
