"""The guide's scoring script: the shape of what it takes and gives, and what bad input gets.

The stand-in is loaded once: answers that belong to their callers, whoever else
calls at the same time, can only come from a model.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image


class AMLResponse:
    """What the inference server gives a script to answer with; here it is only looked at."""

    def __init__(self, message: Any, status_code: int, json_str: bool = False) -> None:
        assert json_str
        self.message, self.status_code = message, status_code


@pytest.fixture(scope="module")
def score(
    guide: dict[str, ModuleType], standin: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ModuleType]:
    folder = tmp_path_factory.mktemp("model")
    (folder / "outputs").symlink_to(standin / "model")
    server = "azureml_inference_server_http"
    fakes = {name: ModuleType(name) for name in (server, f"{server}.api")}
    fakes[f"{server}.api.aml_response"] = ModuleType("aml_response")
    fakes[f"{server}.api.aml_response"].AMLResponse = AMLResponse  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AZUREML_MODEL_DIR", str(folder))
        patch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
        for name, module in fakes.items():
            patch.setitem(sys.modules, name, module)
        guide["score"].init()
        yield guide["score"]


def encoded(picture: Image.Image, kind: str = "PNG") -> str:
    file = io.BytesIO()
    picture.save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def asked(number: int = 0, **changed: Any) -> dict[str, Any]:
    picture = Image.linear_gradient("L").rotate(90 * number).resize((200, 100 + number))
    return {
        "task_prompt": "DocVQA",
        "text_input": f"What is the total of page {number}?",
        "image_input": encoded(picture),
        "params": {"max_new_tokens": 4 + number % 2, "num_beams": 2},
        **changed,
    }


def test_the_guides_request_gets_the_guides_answer(score: ModuleType) -> None:
    answer = score.run(json.dumps(asked()))
    assert answer["result"] == str({"DocVQA": answer["answer"]})


def test_the_task_may_come_with_or_without_its_brackets(score: ModuleType) -> None:
    plain, marked = (score.run(json.dumps(asked(task_prompt=t))) for t in ("DocVQA", "<DocVQA>"))
    assert plain["answer"] == marked["answer"]
    assert "<DocVQA>" in marked["result"]


def test_a_picture_may_be_a_data_url(score: ModuleType) -> None:
    plain = asked()
    named = {**plain, "image_input": f"data:image/png;base64,{plain['image_input']}"}
    assert torch.equal(score.request_in(named).pixels, score.request_in(plain).pixels)


def test_a_list_is_answered_in_its_order(score: ModuleType) -> None:
    several = [asked(number) for number in range(3)]
    together = score.run(json.dumps(several))
    assert together == [score.run(json.dumps(one)) for one in several]


def test_callers_at_the_same_time_get_their_own_answers(score: ModuleType) -> None:
    bodies = [json.dumps(asked(number)) for number in range(8)]
    alone = [score.run(body) for body in bodies]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(score.run, bodies)) == alone


def test_large_pictures_are_kept_small_and_their_size_is_known(score: ModuleType) -> None:
    large = Image.linear_gradient("L").resize((4000, 3000)).convert("RGB")
    for kind in ("JPEG", "PNG"):
        request = score.request_in(asked(image_input=encoded(large, kind)))
        size = score.processor.image_processor.size
        assert request.size == (4000, 3000)  # a box in the answer is told in these
        assert request.pixels.shape == (3, size["height"], size["width"])


def test_a_picture_is_turned_as_its_camera_was(score: ModuleType) -> None:
    upright = Image.linear_gradient("L").resize((100, 200)).convert("RGB")
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # held upright, and kept lying on its side
    upright.rotate(90, expand=True).save(file, "PNG", exif=exif)
    lying = base64.b64encode(file.getvalue()).decode()
    found = score.request_in(asked(image_input=lying))
    assert found.size == (100, 200)
    assert torch.equal(found.pixels, score.request_in(asked(image_input=encoded(upright))).pixels)


def test_settings_may_be_left_out(score: ModuleType) -> None:
    request = asked()
    del request["params"]
    assert score.request_in(request).how == (64, 3)


def bomb() -> str:
    """A PNG that says it has 25,000 x 20,000 pixels, and holds next to nothing."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", 25_000, 20_000, 8, 2, 0, 0, 0)
    whole = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99))
    return base64.b64encode(whole + chunk(b"IEND", b"")).decode()


def truncated() -> str:
    whole = base64.b64decode(encoded(Image.effect_noise((300, 300), 50)))
    return base64.b64encode(whole[: len(whole) // 2]).decode()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "1 to 32 requests, not 0"),
        ("7", "must be an object"),
        (json.dumps([{}] * 33), "not 33"),
        ({"text_input": None}, "text_input must be text, not NoneType"),
        ({"text_input": "why? " * 20_000}, "text_input has 100000 characters"),
        ({"image_input": "not base64!"}, "is not base64"),
        ({"image_input": "ÄÖ"}, "is not base64"),
        ({"image_input": "data:image/png,%89PNG"}, "a data URL without base64"),
        ({"image_input": "data:image/png;base64,%%%"}, "is not base64"),
        (
            json.dumps([asked(), asked(image_input="%")]),
            "request 2 of 2: image_input is not base64",
        ),
        ({"image_input": base64.b64encode(b"no picture").decode()}, "not of a picture"),
        ({"text_input": "what is <image>?"}, "cannot be asked"),
        ({"text_input": "\ud800"}, "cannot be asked"),
        ({"text_input": "<OD> and more"}, "cannot be asked"),
        ({"text_input": "\u4e2d\u6587" * 1000}, "text_input is too long"),
        ({"image_input": encoded(Image.new("RGB", (9, 9)), "EPS")}, "not of a picture"),
        ({"image_input": bomb()}, "pixels"),
        ({"image_input": truncated()}, "cannot be decoded"),
        ({"params": 3}, "params must be an object"),
        ({"params": {"num_beams": 10_000}}, "params.num_beams must be a whole number from 1 to 10"),
        ({"params": {"max_new_tokens": True}}, "params.max_new_tokens must be a whole number"),
    ],
)
def test_bad_input_is_the_callers_mistake_by_name(
    score: ModuleType, body: str | dict[str, Any], why: str
) -> None:
    answer = score.run(body if isinstance(body, str) else json.dumps(asked(**body)))
    assert answer.status_code == 400
    assert why in answer.message["error"]["message"]
    assert len(answer.message["error"]["message"]) < 300


@pytest.mark.parametrize("name", ["task_prompt", "text_input", "image_input"])
def test_a_missing_field_is_named(score: ModuleType, name: str) -> None:
    request = asked()
    del request[name]
    answer = score.run(json.dumps(request))
    assert answer.status_code == 400
    assert answer.message == {"error": {"code": "BadRequest", "message": f"{name} is missing"}}


def test_a_batch_that_fails_fails_its_callers_and_no_other(
    score: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = threading.Event()

    def fails(requests: list[Any]) -> list[str]:
        broken.set()
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(score, "generate", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            score.run(json.dumps(asked()))
    assert broken.is_set()
    assert "result" in score.run(json.dumps(asked()))
