"""A script that takes the request itself."""

from azureml.contrib.services.aml_request import AMLRequest, rawhttp
from azureml.contrib.services.aml_response import AMLResponse


def init():
    pass


@rawhttp
def run(request):
    what = request.args.get("what", "echo")
    if what == "raise":
        raise ValueError("no picture")
    return ANSWERS[what](request)


def echo(request: AMLRequest):
    if request.method == "GET":
        return {"query": request.full_path}
    if request.method != "POST":
        return AMLResponse(f"no {request.method}", 500)
    return AMLResponse(request.get_data(False)[::-1], 200)


def pieces(request):
    for number in range(4):
        yield f"data: {number}\n\n"


ANSWERS = {
    "echo": echo,
    "json": lambda request: request.get_json(),
    "form": lambda request: {**request.form, "file": request.files["file"].read().decode()},
    "headers": lambda request: {
        "custom": request.headers.get("X-Custom"),
        "type": request.content_type,
        "length": request.content_length,
        "secret": request.headers.get("x-finery-secret"),
        "path": request.path,
    },
    "picture": lambda request: AMLResponse(
        bytes(range(256)) * 40, 200, {"Content-Type": "image/jpeg", "X-Label": "cat, dog"}
    ),
    "encoded": lambda request: AMLResponse({"a": [1, "é"]}, 201, json_str=True),
    "none": lambda request: AMLResponse(None, 200),
    "teapot": lambda request: AMLResponse("short and stout", 418, {"X-Kind": "pot"}),
    "unavailable": lambda request: AMLResponse("later", 503),
    "blamed": lambda request: AMLResponse("hm", 200, {}, False, True),
    "nothing": lambda request: AMLResponse("", 204),
    "elsewhere": lambda request: AMLResponse("", 302, {"Location": "http://other/place"}),
    "stream": lambda request: AMLResponse(
        pieces(request), 200, {"Content-Type": "text/event-stream"}
    ),
    "plain": lambda request: {"no": "response"},
    "own": lambda request: AMLResponse("x", 200, {"x-ms-request-id": "mine"}),
}
