import io
import re

import numpy as np
import pytest
from PIL import Image

from tf_detectorgan.user_study import plan as plans
from tf_detectorgan.user_study.answers import Answer, Answers
from tf_detectorgan.user_study.page import create_app

GIVEN = {
    "better_whole": "left",
    "better_object": "right",
    "whole_left": "5",
    "object_left": "4",
    "whole_right": "2",
    "object_right": "1",
}


def csrf(client, address="/pair"):
    return re.search(r'name="csrf" value="([^"]+)"', client.get(address).text)[1]


def join(client, name="Ada"):
    return client.post("/join", data={"csrf": csrf(client, "/"), "name": name})


@pytest.fixture
def client(study):
    return create_app(study).test_client()


def test_complete_study(client, study):
    assert join(client).status_code == 302
    shown = plans.order(plans.read(study), 1)
    for position in range(4):
        page = client.get("/pair").text
        assert f"Pair {position + 1} of 4" in page
        answered = client.post(f"/pair/{position}", data={**GIVEN, "csrf": csrf(client)})
        assert answered.status_code == 303
    assert "Thank you, Ada" in client.get("/pair").text
    stored = {answer.pair: answer for answer in Answers(study).all()}
    for one in shown:
        left = {"left": one.left, "better_whole": one.left}
        other = "B" if one.left == "A" else "A"
        marks = {f"whole_{one.left}": 5, f"object_{one.left}": 4, f"whole_{other}": 2, f"object_{other}": 1}
        assert stored[one.pair] == Answer(rater=1, pair=one.pair, better_object=other, **left, **marks)


def test_left_image_is_of_the_left_method_without_metadata(client, study):
    join(client)
    for position, shown in enumerate(plans.order(plans.read(study), 1)):
        answer = client.get(f"/image/{position}/left")
        expected = np.asarray(Image.open(plans.image_file(study, shown.pair, shown.left)))
        with Image.open(io.BytesIO(answer.data)) as image:
            np.testing.assert_array_equal(np.asarray(image), expected)
            assert image.info == {}
    page = client.get("/pair").text
    assert "real.png" not in page
    assert "_A" not in page


def test_order_and_sides_differ_between_raters_and_are_balanced(study):
    plan = plans.read(study)
    orders = [plans.order(plan, rater) for rater in range(1, 9)]
    assert len(set(map(tuple, orders))) > 4
    assert all(sum(one.left == "A" for one in shown) == 2 for shown in orders)
    assert orders[0] == plans.order(plan, 1)


def test_study_is_resumed_by_cookie_after_a_restart(client, study):
    join(client)
    client.post("/pair/0", data={**GIVEN, "csrf": csrf(client)})
    again = create_app(study).test_client()  # the server was restarted
    name = client.application.config["SESSION_COOKIE_NAME"]
    again.set_cookie(name, client.get_cookie(name).value)
    assert "Pair 2 of 4" in again.get("/pair").text


def test_taken_or_empty_name_is_refused_and_html_is_escaped(client, study):
    assert join(client).status_code == 302
    other = create_app(study).test_client()
    assert "taken" in join(other).text
    assert join(other, "  ").status_code == 400
    assert join(other, "x" * 61).status_code == 400
    for hidden in ("Eve\x1b[2J", "Eve\u202e", "Eve\x00"):
        assert "printable" in join(other, hidden).text
    assert [rater.name for rater in Answers(study).raters()] == ["Ada"]
    join(other, "<script>alert(1)</script>")
    assert "&lt;script&gt;alert(1)" in other.get("/pair").text


def test_second_answer_to_a_pair_is_ignored(client, study):
    join(client)
    token = csrf(client)
    client.post("/pair/0", data={**GIVEN, "csrf": token})
    client.post("/pair/0", data={**GIVEN, "whole_left": "1", "csrf": token})
    (stored,) = Answers(study).all()
    assert 5 in (stored.whole_A, stored.whole_B)


@pytest.mark.parametrize("change", [{"whole_left": "6"}, {"whole_left": ""}, {"better_whole": "A"}])
def test_invalid_answers_are_not_stored(client, study, change):
    join(client)
    assert client.post("/pair/0", data={**GIVEN, **change, "csrf": csrf(client)}).status_code == 400
    assert Answers(study).all() == []


@pytest.mark.parametrize("token", [None, "", "guess", "é"])
def test_post_without_csrf_token_is_not_stored(client, study, token):
    join(client)
    form = GIVEN if token is None else {**GIVEN, "csrf": token}
    assert client.post("/pair/0", data=form).status_code == 400
    assert client.post("/join", data={"name": "Eve", "csrf": token or ""}).status_code == 400
    assert Answers(study).all() == []


@pytest.mark.parametrize("address", ["/", "/pair", "/study.js", "/study.css", "/image/0/left", "/none"])
def test_every_response_has_the_security_headers(client, address):
    headers = client.get(address).headers
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"


def test_pages_conform_to_the_content_security_policy(client):
    join(client)
    page = client.get("/pair").text
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", page)


@pytest.mark.parametrize(
    "address",
    [
        "/image/0/../../study.json",
        "/image/..%2f..%2fstudy.json/left",
        "/image/0/%2e%2e%2fstudy.json",
        "/image/-1/left",
        "/image/99/left",
        "/static/study.js",
        "/study.json",
        "/answers.sqlite",
        "/session.key",
    ],
)
def test_files_of_the_study_are_not_served(client, address):
    join(client)
    assert client.get(address).status_code == 404


def test_images_require_a_rater_session(client):
    assert client.get("/image/0/left").status_code == 403


def test_access_token_is_required_and_removed_from_the_address(study):
    client = create_app(study, token="correct horse battery").test_client()
    assert client.get("/").status_code == 403
    for address in ("/?token=wrong", "/pair", "/study.js", "/image/0/left"):
        assert client.get(address).status_code == 403
    assert client.get("/study.css").status_code == 200
    assert client.get("/?token=%C3%A9").status_code == 403
    admitted = client.get("/?token=correct+horse+battery")
    assert (admitted.status_code, admitted.headers["Location"]) == (302, "/")
    assert client.get("/").status_code == 200


def test_new_token_invalidates_sessions(study):
    first = create_app(study, token="correct horse battery").test_client()
    first.get("/?token=correct+horse+battery")
    changed = create_app(study, token="incorrect horse battery").test_client()
    name = changed.application.config["SESSION_COOKIE_NAME"]
    changed.set_cookie(name, first.get_cookie(name).value)
    assert changed.get("/").status_code == 403
    assert "horse" not in first.get_cookie(name).decoded_value
    changed.get("/?token=incorrect+horse+battery")
    assert changed.get("/").status_code == 200


def test_leaving_lets_another_rater_join(client, study):
    join(client)
    assert client.post("/leave").status_code == 400  # without the CSRF token
    assert "Pair 1" in client.get("/pair").text
    assert client.post("/leave", data={"csrf": csrf(client)}).status_code == 303
    assert client.get("/pair").headers["Location"] == "/"
    assert join(client, "Bea").status_code == 302
    assert "Bea" in client.get("/pair").text


def test_other_host_names_are_refused(study):
    client = create_app(study, hosts=("127.0.0.1", "localhost")).test_client()
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/", headers={"Host": "127.0.0.1:8000"}).status_code == 200


def test_session_key_is_readable_by_its_owner_only(study):
    create_app(study)
    assert (study / "session.key").stat().st_mode & 0o077 == 0
