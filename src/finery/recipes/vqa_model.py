"""A model that answers questions about pictures, as MLflow loads it: copied into the model.

So it imports nothing of ours: transformers, torch, pillow and pandas are all it
needs, and peft for an adapter.  MLflow runs the file to get the model (the last
line), the one place where something happens at import.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import mlflow.models
import mlflow.pyfunc
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MOST_CHARACTERS = 10_000
MOST_PIXELS = 89_478_485
MOST = {"num_beams": 16, "max_answer_length": 1024}
BATCH = 16


class VisualQuestionAnswering(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Pictures and questions in, answers out."""

    def load_context(self, context: Any) -> None:
        """Loads the checkpoint that lies in the artifact `model`, and how it was trained to ask."""
        import torch
        from transformers import AutoProcessor, Florence2ForConditionalGeneration

        folder = Path(context.artifacts["model"])
        self.settings = json.loads((folder / "vqa.json").read_text(encoding="utf-8"))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        adapter = (folder / "adapter_config.json").is_file()
        model = Florence2ForConditionalGeneration.from_pretrained(
            str(folder / "base" if adapter else folder),
            dtype="auto" if device == "cuda" else "float32",
        )
        if adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(folder))
        self.model = model.to(device).eval()
        self.processor = AutoProcessor.from_pretrained(str(folder))

    # Types here would be a schema to MLflow, and not one it takes.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """A data frame with one `answer` for each row of `image` and `question` (or `text`)."""
        import pandas

        settings = {**self.settings}
        settings.update({k: v for k, v in (params or {}).items() if v not in (None, "", 0)})
        for name, most in MOST.items():
            if not 1 <= int(settings[name]) <= most:
                raise _wrong(f"params.{name}: must be from 1 to {most}, not {settings[name]}")
        reader = self.processor.image_processor
        size = (reader.size["width"], reader.size["height"])
        cases = read(model_input, size, reader.resample)
        answers: list[str] = []
        for start in range(0, len(cases), BATCH):
            answers += self.answer(cases[start : start + BATCH], settings)
        return pandas.DataFrame({"answer": answers})

    def answer(self, cases: list[tuple[Any, str]], settings: dict[str, Any]) -> list[str]:
        """Answers to some pictures and questions, generated together."""
        import torch

        reader, words = self.processor.image_processor, self.processor.tokenizer
        texts = [self._prompt(question, str(settings["task_prompt"])) for _, question in cases]
        batch = words(
            texts,
            return_tensors="pt",
            padding=True,
            add_special_tokens=False,
            return_token_type_ids=False,
        ).to(self.model.device)
        room = int(self.model.config.text_config.max_position_embeddings)
        if batch["input_ids"].shape[1] > room:
            raise _wrong(f"question: has too many tokens; with the picture at most {room} fit")
        pixels = reader([picture for picture, _ in cases], return_tensors="pt")["pixel_values"]
        beams = int(settings["num_beams"])
        with torch.inference_mode():
            made = self.model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                pixel_values=pixels.to(self.model.device, self.model.dtype),
                num_beams=beams,
                do_sample=False,
                early_stopping=beams > 1,
                max_new_tokens=min(int(settings["max_answer_length"]) + 2, room - 1),
            )
        return [text.strip() for text in words.batch_decode(made, skip_special_tokens=True)]

    def _prompt(self, question: str, task: str) -> str:
        """As in training: the picture's places, then the question between beginning and end."""
        token, words = str(self.processor.image_token), self.processor.tokenizer
        if token in question or token in task:
            raise _wrong(f"question: has {token}, which stands for the picture; leave it out")
        form = self.processor.task_prompts_with_input.get(task, "{task}{input}")
        asked = form.format(task=task, input=question)
        count = self.processor.num_image_tokens
        return f"{token * count}{words.bos_token}{asked}{words.eos_token}"


def read(given: Any, size: tuple[int, int], resample: int) -> list[tuple[Any, str]]:
    """(picture, question) of each row; MLflow's error for a bad request says what is wrong."""
    if hasattr(given, "to_dict") and hasattr(given, "columns"):
        given = given.to_dict(orient="records")
    if isinstance(given, dict):
        given = [given]
    if not isinstance(given, list) or not all(isinstance(row, dict) for row in given):
        raise _wrong("expected rows of image and question")
    if not given:
        raise _wrong("there are no rows")
    cases = []
    for number, row in enumerate(given):
        question = next((row[k] for k in ("question", "text") if isinstance(row.get(k), str)), "")
        if not question.strip():
            raise _wrong(f"row {number}, question: is missing or empty")
        if len(question) > MOST_CHARACTERS:
            raise _wrong(f"row {number}, question: has {len(question):,} characters")
        if any("\ud800" <= one <= "\udfff" for one in question):
            raise _wrong(f"row {number}, question: has half a character (a lone surrogate)")
        try:
            cases.append((picture(row.get("image"), size, resample), question.strip()))
        except ValueError as error:
            raise _wrong(f"row {number}, image: {error}") from error
    return cases


def picture(given: Any, size: tuple[int, int], resample: int) -> Any:
    """The picture of base64, a data URI or bytes, at the size (width, height) that it is seen in.

    One at a time and as the training had it: the pictures of a request, each at its own
    size, would need gigabytes.  ValueError says why it is none.
    """
    from PIL import Image, ImageOps

    if isinstance(given, str):
        text = given.partition(",")[2] if given.startswith("data:") else given
        try:
            given = base64.b64decode("".join(text.split()), validate=True)
        except ValueError as error:
            raise ValueError(f"is not base64 ({error})") from error
    if not isinstance(given, bytes) or not given:
        raise ValueError("is missing: base64 or a data URI is expected")
    try:
        found: Any = Image.open(io.BytesIO(given), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError("has too many pixels; scale it") from error
    except Exception as error:
        raise ValueError(f"is no picture ({', '.join(FORMATS)} are read)") from error
    if found.width * found.height > MOST_PIXELS:
        raise ValueError(f"has {found.width} x {found.height} pixels, too many; scale it")
    try:
        found.draft("RGB", size)
        found = ImageOps.exif_transpose(found)
        if found.mode in ("RGBA", "LA", "PA") or "transparency" in found.info:
            clear = found.convert("RGBA")
            found = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
        return found.convert("RGB").resize(size, Image.Resampling(resample))
    except Exception as error:
        raise ValueError(f"cannot be decoded ({error}); is it cut short?") from error


def _wrong(message: str) -> MlflowException:
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


mlflow.models.set_model(VisualQuestionAnswering())
