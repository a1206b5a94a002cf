"""Which words of a text a page keeps to itself, and which it must not."""

from __future__ import annotations

import time

import pytest

from finery.doors.studio import concealing


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("--hub-token abc --rate 1", "--hub-token [hidden] --rate 1"),
        ("--api_key=abc run", "--api_key=[hidden] run"),
        ("HF_TOKEN=abc python x.py", "HF_TOKEN=[hidden] python x.py"),
        ("run --env=HF_TOKEN=abc --env A=b", "run --env=HF_TOKEN=[hidden] --env A=b"),
        ("password=token=abc", "password=[hidden]"),
        ("export DB_PASSWORD='a b c'; run", "export DB_PASSWORD=[hidden]; run"),
        ('{"accountKey": "abc", "n": 1}', '{"accountKey": [hidden], "n": 1}'),
        ("curl -H 'Authorization: Bearer abcdefgh'", "curl -H 'Authorization: [hidden] [hidden]'"),
        ("https://s.example/c?sv=1&sig=a%2Fb&se=2", "https://s.example/c?sv=1&sig=[hidden]&se=2"),
        ("git clone https://me:pw@h.example/r", "git clone https://[hidden]@h.example/r"),
        ("git+https://onlyatoken@h.example/r", "git+https://[hidden]@h.example/r"),
        ("login hf_abcdefghijklmnopqrst", "login [hidden]"),
        ("x ghp_abcdefghijklmnopqrst0123", "x [hidden]"),
        ("x sk-proj-abcdefghijklmnopqrst", "x [hidden]"),
        ("x AKIAABCDEFGHIJKLMNOP", "x [hidden]"),
        ("x eyJhbGciOiJI.eyJzdWIiOiIx.c2ln", "x [hidden]"),
        ("x aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3fG5hJ7k", "x [hidden]"),
    ],
)
def test_what_looks_like_a_secret_is_not_shown(text, shown):
    assert concealing.hidden(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "python train.py --max_tokens 64 --tokenizer x --rate 0.1",
        "python -m finery.recipes.finetune --data ${{inputs.rows}} --out ${{outputs.model}}",
        "HF_TOKEN=$HF_TOKEN python x.py",
        "--token ${{inputs.token}}",
        "torchrun --nproc_per_node 2 train.py",
        "workspaceblobstore/LocalUpload/95c0c1b0c4e31042364f83ee9122ee2d250657bb3ce8fd47/rows.txt",
        "monkey=1 keyboard=2",
        "ssh://git@h.example/r https://h.example/r@v1",
        "Phi-3-mini-4k-instruct-finetuned-for-the-Harbour-2026-11-21",
    ],
)
def test_what_is_harmless_stays(text):
    assert concealing.hidden(text) == text


def test_what_is_called_a_secret_is_hidden_whatever_it_is():
    assert concealing.hidden("plain", name="db_password") == concealing.HIDDEN
    assert concealing.hidden("plain", name="max_tokens") == "plain"
    assert concealing.hidden("", name="db_password") == ""


@pytest.mark.parametrize("piece", ["a" * 50, "a=", "--a ", "token=", "://a:", "-_", "bearer "])
def test_no_text_takes_long(piece):
    began = time.process_time()
    assert len(concealing.hidden(piece * 100_000)) < 200_000
    assert time.process_time() - began < 5  # of this process alone: a hundredth of it is usual
