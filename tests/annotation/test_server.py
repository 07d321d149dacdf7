"""The server of the page: pairs without names go out, judgments come in, and nobody else's do."""

from __future__ import annotations

import json
import random
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs macpo[annotate]")

from starlette.testclient import TestClient

from macpo.annotation.judgments import JudgmentFile, left_side
from macpo.annotation.server import content_security_policy, is_own_host, make_app, serve
from macpo.errors import ConfigError
from macpo.records import Message
from tests.annotation.files import make_file, make_pair, make_pairing

HOME = "http://127.0.0.1:8765"
PAGE = Path(__file__).parents[2] / "src" / "macpo" / "annotation" / "page.html"


@pytest.fixture
def file(tmp_path: Path) -> Iterator[JudgmentFile]:
    opened = make_file(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def client(file: JudgmentFile) -> TestClient:
    return TestClient(make_app(file, "127.0.0.1"), base_url=HOME)


def judge(client: TestClient, annotator: str, pair: str, choice: object) -> Any:
    asked = {"annotator": annotator, "pair": pair, "choice": choice, "seconds": 3.14}
    return client.post("/api/judge", json=asked)


def test_a_person_goes_through_all_pairs(client: TestClient, file: JudgmentFile) -> None:
    state = client.get("/api/next", params={"annotator": " Anna  B. "}).json()
    assert (state["annotator"], state["done"], state["pairs"]) == ("Anna B.", 0, 6)
    for done, choice in enumerate(["left", "right", "tie", "left", "right", "tie"], 1):
        pair = file.pairs[done - 1]
        left = left_side(pair.id, "Anna B.")
        texts = [pair.one.text, pair.other.text]
        shown = state["pair"]
        assert [shown["left"], shown["right"]] == (texts if left == "one" else texts[::-1])
        assert shown["prompt"] == [{"role": "user", "content": pair.prompt.messages[-1].content}]
        state = judge(client, "Anna B.", shown["id"], choice).json()
        assert state["kept"]
        assert state["done"] == done
        right = "other" if left == "one" else "one"
        verdict = {"left": left, "right": right, "tie": "tie"}[choice]
        assert file.judgments()[-1].verdict == verdict
        assert file.judgments()[-1].left == left
        assert file.judgments()[-1].seconds == 3.1
    assert state["pair"] is None
    assert client.get("/api/start").json() == {"pairs": 6, "annotators": {"Anna B.": 6}}


def test_nothing_says_whose_answer_is_which(client: TestClient) -> None:
    sent = [
        client.get("/api/start").text,
        client.get("/api/next", params={"annotator": "Anna"}).text,
        client.get("/").text,
    ]
    for text in sent:
        assert "student" not in text.lower()
        assert "positive" not in text
    assert set(json.loads(sent[1])["pair"]) == {"id", "prompt", "left", "right"}


def test_undo_shows_the_same_sides_again(client: TestClient) -> None:
    first = client.get("/api/next", params={"annotator": "Anna"}).json()["pair"]
    judge(client, "Anna", first["id"], "left")
    state = client.post("/api/undo", json={"annotator": "Anna"}).json()
    assert (state["undone"], state["done"], state["pair"]) == (True, 0, first)
    again = client.post("/api/undo", json={"annotator": "Anna"}).json()
    assert (again["undone"], again["pair"]) == (False, first)


def test_second_tab_is_told_that_the_first_judgment_stands(
    client: TestClient, file: JudgmentFile
) -> None:
    pair = file.pairs[0].id
    assert judge(client, "Anna", pair, "left").json()["kept"]
    second = judge(client, "Anna", pair, "right").json()
    assert not second["kept"]
    assert second["pair"]["id"] == file.pairs[1].id
    assert len(file.judgments()) == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "a name is 1 to 60"),
        ({"annotator": "Anna"}, "a judgment has a pair, and a choice of left, right, tie"),
        ({"annotator": "Anna", "pair": "PAIR", "choice": "best"}, "a choice of left, right, tie"),
        ({"annotator": "Anna", "pair": "PAIR", "choice": ["left"]}, "a choice of"),
        ({"annotator": "Anna", "pair": "feed", "choice": "left"}, "no such pair; load the page"),
        ([], "a name is"),
        ("x" * 20_000, "a name is"),
    ],
)
def test_requests_that_are_wrong_are_told_and_keep_nothing(
    client: TestClient, file: JudgmentFile, asked: Any, message: str
) -> None:
    reply = client.post("/api/judge", json=asked)
    assert reply.status_code == 400
    assert message in reply.json()["error"]
    assert file.judgments() == []


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 5000, b"\xff"])
def test_what_is_no_json_is_told(client: TestClient, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    assert client.post("/api/judge", content=content, headers=headers).status_code == 400


def test_odd_requests_by_the_hundred_are_answered_and_keep_nothing_odd(
    client: TestClient, file: JudgmentFile
) -> None:
    """The client raises what the server does not answer."""
    generator = random.Random(0)
    pair = file.pairs[0].id
    odd: list[Any] = [
        *(None, True, -1, 10**400, 1e308, "", " ", "x" * 99, "\ud800", "\0", "\u202e", "../..", []),
        *({}, [pair], {"$ne": 1}, "'; DROP TABLE judgments; --", "<script>", f"{pair}\n", "left\0"),
    ]
    bodies = [b"[" * 9000, b'{"annotator": "' + b"x" * 20_000, b"1" * 9000, b"NaN", b"\xff\xfe{}"]
    for _ in range(200):
        asked = {"annotator": "Anna", "pair": pair, "choice": "left", "seconds": 1}
        asked[generator.choice(["annotator", "pair", "choice"])] = generator.choice(odd)
        made = json.dumps(asked).encode()
        body = generator.choice([made, made, made, made[: generator.randrange(len(made))], *bodies])
        method = generator.choice(["POST", "POST", "POST", "PUT", "DELETE", "GET", "HEAD"])
        path = generator.choice(
            ["/api/judge", "/api/judge", "/api/undo", "/api/next", "/api/../..", "/x", "//"]
        )
        headers = {"Content-Type": "application/json"}
        reply = client.request(method, HOME + path, content=body, headers=headers)
        assert reply.status_code in (200, 400, 404, 405), (method, path, body)
    kept = {judgment.annotator for judgment in file.judgments()}
    assert kept <= {"../..", "'; DROP TABLE judgments; --", "<script>"}  # as good names as others


@pytest.mark.parametrize("seconds", ["1", True, -1, 1e300, None])
def test_times_that_make_no_sense_are_no_measurement(
    client: TestClient, file: JudgmentFile, seconds: object
) -> None:
    asked = {"annotator": "Anna", "pair": file.pairs[0].id, "choice": "left", "seconds": seconds}
    assert client.post("/api/judge", json=asked).json()["kept"]
    assert file.judgments()[0].seconds is None


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example:8765"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "10.0.0.1:8765"},
        {"Host": ""},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
    ],
    ids=str,
)
def test_other_pages_cannot_judge(
    client: TestClient, file: JudgmentFile, headers: dict[str, str]
) -> None:
    body = {"annotator": "Anna", "pair": file.pairs[0].id, "choice": "left"}
    sent = {"Content-Type": "application/json", **headers}
    reply = client.post("/api/judge", content=json.dumps(body), headers=sent)
    assert reply.status_code == 403
    assert file.judgments() == []


def test_names_pointed_at_us_read_nothing(client: TestClient) -> None:
    """DNS rebinding: the browser takes our answers for another page's own."""
    for path in ("/", "/api/start", "/api/next?annotator=Anna"):
        assert client.get(path, headers={"Host": "evil.example:8765"}).status_code == 403


def test_own_page_may_ask(client: TestClient, file: JudgmentFile) -> None:
    headers = {"Origin": HOME, "Sec-Fetch-Site": "same-origin"}
    body = {"annotator": "Anna", "pair": file.pairs[0].id, "choice": "left"}
    assert client.post("/api/judge", json=body, headers=headers).json()["kept"]


@pytest.mark.parametrize(
    ("header", "served", "own"),
    [
        ("127.0.0.1:8765", "127.0.0.1", True),
        ("localhost:8765", "127.0.0.1", True),
        ("[::1]:8765", "127.0.0.1", True),
        ("LOCALHOST", "localhost", True),
        ("192.168.0.7:8765", "127.0.0.1", False),
        ("192.168.0.7:8765", "0.0.0.0", True),
        ("[fe80::1]:8765", "::", True),
        ("evil.example:8765", "0.0.0.0", False),
        ("lab-machine:8765", "lab-machine", True),
        ("localhost.evil.example", "127.0.0.1", False),
    ],
)
def test_hosts_that_are_ours(header: str, served: str, own: bool) -> None:
    assert is_own_host(header, served) is own


def test_page_may_ask_nobody_but_us_and_run_nothing_but_itself(client: TestClient) -> None:
    reply = client.get("/")
    policy = reply.headers["Content-Security-Policy"]
    page = PAGE.read_text(encoding="utf-8")
    assert policy == content_security_policy(page)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert reply.headers["Cache-Control"] == "no-store"
    assert not re.findall(r"https?://|@import|url\(|src=|innerHTML|insertAdjacent|eval\(", page)


def test_text_with_half_a_character_is_sent(tmp_path: Path) -> None:
    pair = make_pair("Hi", "a \ud83d b", "c", Message("system", "Be brief."))
    file = JudgmentFile.open(tmp_path / "a.sqlite", make_pairing([pair]))
    client = TestClient(make_app(file, "127.0.0.1"), base_url=HOME)
    shown = client.get("/api/next", params={"annotator": "Anna"}).json()["pair"]
    assert {shown["left"], shown["right"]} == {"a \ud83d b", "c"}
    assert [m["role"] for m in shown["prompt"]] == ["system", "user"]


def test_port_that_is_taken_is_told(file: JudgmentFile) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"^cannot listen at 127.0.0.1, port {port}: .*--port"
        ):
            serve(file, "127.0.0.1", port, lambda _: None)
