"""The scoring script: `init()` once, then `run(request)` for every call, from several threads.

A request, and its answer:

    {"task_prompt": "DocVQA", "text_input": "What is the total?", "image_input": BASE64,
     "params": {"max_new_tokens": 64, "num_beams": 3}}
    {"result": "{'DocVQA': '12.50'}", "answer": "12.50"}

The picture may be a data URL, too (`data:image/png;base64,…`).  A list of requests is answered
with a list.  What cannot be answered gets HTTP status 400
(the endpoint makes it 424 and says 400 in `ms-azureml-model-error-statuscode`) and
{"error": {"code": "BadRequest", "message": WHY}}, as the SDK reads errors.  Calls that come in
together are answered together, in one batch of the model.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import json
import logging
import os
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import ExifTags, Image, ImageOps
from transformers import AutoProcessor, Florence2ForConditionalGeneration

MAX_PICTURE = 50_000_000  # pixels; a page at 600 dots an inch has 35 million
MAX_BYTES = 20_000_000  # of one picture, encoded as it came
MAX_QUESTION = 2_000  # characters
MAX_TASK = 100
MAX_NEW_TOKENS = 1024
MAX_BEAMS = 10
MAX_REQUESTS = 32  # in one list
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # others start programs to be read
BATCH = 8  # requests that the model answers at a time

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class BadRequest(ValueError):
    """The caller's mistake; the message says which."""


@dataclass(frozen=True)
class Request:
    task: str  # as the caller wrote it: the result is filed under it
    size: tuple[int, int]  # of the picture as it came: boxes in an answer are told in it
    words: list[int]  # the prompt, with the picture's places
    pixels: torch.Tensor
    max_new_tokens: int
    num_beams: int

    @property
    def how(self) -> tuple[int, int]:
        """Requests that generate alike can be one batch."""
        return self.max_new_tokens, self.num_beams


def init() -> None:
    """Load the model from the folder that the training saved, below AZUREML_MODEL_DIR."""
    global model, processor, waiting
    folder = Path(os.environ["AZUREML_MODEL_DIR"]) / "outputs"
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = Florence2ForConditionalGeneration.from_pretrained(folder, dtype=dtype).to(device).eval()
    processor = AutoProcessor.from_pretrained(folder)
    Image.MAX_IMAGE_PIXELS = MAX_PICTURE
    prepared("<DocVQA>", Image.new("RGB", (8, 8)))  # sets the tokenizer up, which threads may not
    waiting = queue.Queue()
    threading.Thread(target=work, args=(waiting,), daemon=True).start()
    logging.info("Loaded %s on %s", folder, device)


def run(raw_data: str) -> Any:
    """Answer one request, or a list of them."""
    try:
        given = json_in(raw_data)
        several = given if isinstance(given, list) else [given]
        if not 1 <= len(several) <= MAX_REQUESTS:
            raise BadRequest(f"a list must have 1 to {MAX_REQUESTS} requests, not {len(several)}")
        requests = [request_at(at, several) for at in range(len(several))]
    except BadRequest as error:
        logging.warning("Refused: %s", error)
        return refusal(str(error))
    futures = [ask(request) for request in requests]
    results = [
        result_out(request, future.result())
        for request, future in zip(requests, futures, strict=True)
    ]
    return results if isinstance(given, list) else results[0]


def json_in(raw_data: str) -> Any:
    try:
        return json.loads(raw_data)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is no JSON: {error}") from None


def request_at(at: int, several: list[Any]) -> Request:
    try:
        return request_in(several[at])
    except BadRequest as error:
        if len(several) == 1:
            raise
        raise BadRequest(f"request {at + 1} of {len(several)}: {error}") from None


def request_in(given: Any) -> Request:
    if not isinstance(given, dict):
        raise BadRequest("a request must be an object with task_prompt, text_input, image_input")
    params = given.get("params", {})
    if not isinstance(params, dict):
        raise BadRequest("params must be an object")
    task = text_in(given, "task_prompt", MAX_TASK)
    question = text_in(given, "text_input", MAX_QUESTION)
    most = count_in(params, "max_new_tokens", 64, MAX_NEW_TOKENS)
    beams = count_in(params, "num_beams", 3, MAX_BEAMS)
    picture, size = picture_in(text_in(given, "image_input", MAX_BYTES * 4 // 3 + 100))
    # What the training put before each question; a caller may leave the brackets out.
    marked = task if task.startswith("<") else f"<{task}>"
    words, pixels = prepared(marked + question, picture)
    return Request(task, size, words, pixels, most, beams)


def text_in(given: dict[str, Any], name: str, most: int) -> str:
    if name not in given:
        raise BadRequest(f"{name} is missing")
    value = given[name]
    if not isinstance(value, str):
        raise BadRequest(f"{name} must be text, not {type(value).__name__}")
    if len(value) > most:
        raise BadRequest(f"{name} has {len(value)} characters; at most {most} are allowed")
    return value


def count_in(params: dict[str, Any], name: str, usual: int, most: int) -> int:
    value = params.get(name, usual)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise BadRequest(
            f"params.{name} must be a whole number from 1 to {most}, not {value!r:.50}"
        )
    return value


def picture_in(text: str) -> tuple[Image.Image, tuple[int, int]]:
    """A picture at the size that the model looks at, and its own, known before it is decoded."""
    if text[:5].lower() == "data:":
        head, _, text = text.partition(",")
        if not head.lower().endswith(";base64"):
            raise BadRequest("image_input is a data URL without base64; data:image/…;base64,… goes")
    try:
        encoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"image_input is not base64: {error}") from None
    try:
        picture = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadRequest(f"image_input has more than {MAX_PICTURE} pixels") from None
    except Exception:  # Pillow's readers raise all kinds for what is no picture
        raise BadRequest("image_input is base64, but not of a picture that can be read") from None
    size = picture.size
    if size[0] * size[1] > MAX_PICTURE:
        raise BadRequest(
            f"image_input has {size[0]} x {size[1]} pixels; at most {MAX_PICTURE} are allowed"
        )
    wanted = processor.image_processor.size
    small = (wanted["width"], wanted["height"])
    try:
        if picture.getexif().get(ExifTags.Base.Orientation, 1) > 4:  # a camera held upright
            size = size[::-1]
        picture.draft("RGB", small)  # a large JPEG is decoded smaller
        ImageOps.exif_transpose(picture, in_place=True)  # as the training sees it; no copy
        # Here and not in the processor, which would have all pictures of a list at their own size.
        return picture.convert("RGB").resize(small, Image.Resampling.BICUBIC), size
    except Exception as error:
        raise BadRequest(f"image_input cannot be decoded: {error}") from None


def prepared(prompt: str, picture: Image.Image) -> tuple[list[int], torch.Tensor]:
    """What the model takes; what it cannot take is found before others are in the same batch."""
    try:
        made = processor(text=prompt, images=picture, return_tensors="pt")
    except (ValueError, TypeError) as error:
        raise BadRequest(f"text_input cannot be asked with this task: {error!s:.150}") from None
    words = made["input_ids"][0].tolist()
    room = model.config.text_config.max_position_embeddings
    if len(words) > room:
        raise BadRequest(f"text_input is too long: {len(words)} tokens in all; {room} are allowed")
    return words, made["pixel_values"][0]


def ask(request: Request) -> Future[str]:
    future: Future[str] = Future()
    waiting.put((request, future))
    return future


def work(line: queue.Queue[tuple[Request, Future[str]]]) -> None:
    """Answer what waits, as much of it at a time as goes together; the only user of the model."""
    left: list[tuple[Request, Future[str]]] = []
    while True:
        left = left or [line.get()]
        with contextlib.suppress(queue.Empty):
            while len(left) < BATCH:
                left.append(line.get_nowait())
        how = left[0][0].how
        now = [pair for pair in left if pair[0].how == how]
        left = [pair for pair in left if pair[0].how != how]
        try:
            said = generate([request for request, _ in now])
            for (_, future), text in zip(now, said, strict=True):
                future.set_result(text)
        except Exception as error:
            for _, future in now:
                future.set_exception(error)


@torch.inference_mode()
def generate(requests: list[Request]) -> list[str]:
    words = processor.tokenizer.pad(
        {"input_ids": [request.words for request in requests]}, return_tensors="pt"
    ).to(device)
    made = model.generate(
        input_ids=words["input_ids"],
        attention_mask=words["attention_mask"],
        pixel_values=torch.stack([request.pixels for request in requests]).to(device, model.dtype),
        max_new_tokens=requests[0].max_new_tokens,
        num_beams=requests[0].num_beams,
    )
    return processor.batch_decode(made, skip_special_tokens=False)


def result_out(request: Request, text: str) -> dict[str, str]:
    clean = text.replace(processor.tokenizer.pad_token, "")
    parsed = processor.post_process_generation(clean, task=request.task, image_size=request.size)
    return {"result": str(parsed), "answer": str(parsed[request.task])}


def refusal(why: str) -> Any:
    """HTTP status 400, in the words of the inference server that runs this script."""
    try:
        from azureml_inference_server_http.api.aml_response import AMLResponse
    except ImportError:
        from azureml.contrib.services.aml_response import AMLResponse
    error = {"code": "BadRequest", "message": why}
    return AMLResponse({"error": error}, 400, json_str=True)
