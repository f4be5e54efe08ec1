"""What travels to a worker comes out as it went in."""

import json

from lightrft_core.data import Media, Prompt, Score, ScoreRequest
from lightrft_core.reward_wire import as_json, decode_requests, decode_score, encode_requests, encode_score


def travelled(requests, *, with_media=True):
    return decode_requests(json.loads(json.dumps(encode_requests(requests, with_media=with_media), default=as_json)))


def test_requests_survive_with_media_and_odd_text():
    prompt = Prompt(
        "p\n1",
        ({"role": "user", "content": "<image> \ud800 ≤"},),
        (Media("image", b"\x00\xff"), Media("audio", "a b.wav")),
        "label",
        "ref",
        {"nested": [1, {"a": None}]},
    )
    requests = [ScoreRequest("one\u2028", (1, 2), prompt, "length"), ScoreRequest("two", (), prompt)]
    assert travelled(requests) == requests


def test_siblings_share_their_prompt_on_the_wire():
    prompt = Prompt("p", ())
    assert len(encode_requests([ScoreRequest(str(n), (), prompt) for n in range(8)], with_media=True)["prompts"]) == 1


def test_media_can_stay_behind():
    request = ScoreRequest("", (), Prompt("p", (), (Media("image", b"big"),)))
    assert travelled([request], with_media=False)[0].prompt.media == ()


def test_scores_survive():
    for score in (Score(0.1 + 0.2, parts={"a": 1e-300}), Score(None, reason="why")):
        assert decode_score(json.loads(json.dumps(encode_score(score)))) == score
