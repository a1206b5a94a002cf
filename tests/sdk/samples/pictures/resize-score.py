"""A picture in, a smaller picture out: the request and the response by hand."""

import io

from azureml.contrib.services.aml_request import AMLRequest, rawhttp
from azureml.contrib.services.aml_response import AMLResponse
from PIL import Image

SIZE = (128, 128)


def init():
    pass


@rawhttp
def run(req: AMLRequest):
    files = req.files.getlist("file")
    if not files:
        return AMLResponse("no file was sent", status_code=422)
    small = io.BytesIO()
    Image.open(files[0].stream).resize(SIZE).save(small, format="JPEG")
    answer = AMLResponse(message=small.getvalue(), status_code=200)
    answer.mimetype = "image/jpg"
    return answer
