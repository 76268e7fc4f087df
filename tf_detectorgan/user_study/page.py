"""The web pages, by Flask. Requests contain no file paths; images are selected by number in the plan."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from datetime import timedelta
from importlib import resources
from pathlib import Path

import flask
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from tf_detectorgan.user_study import plan as plans
from tf_detectorgan.user_study.answers import CHOICES, SCALE, Answer, Answers, Rater

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
NAME_LENGTH = 60
OPEN = ("study.css", "favicon")  # endpoints that need no token, for the error page
KEY = "session.key"  # in the study's directory; signs cookies, also after a restart


def create_app(directory: Path, *, token: str = "", hosts: tuple[str, ...] = ()) -> flask.Flask:
    """Returns the application of the study in `directory`.

    Args:
      directory: as written by `plan.write`; answers are stored there, too.
      token: must be in the address (?token=...) of a browser's first request; "": no token is needed.
      hosts: host names that requests may use; empty: any. On loopback they prevent DNS rebinding, the access
        by pages of other sites whose names resolve to this address.
    """
    app = flask.Flask(__name__, static_folder=None)
    key = _secret_key(directory)
    admission = hmac.digest(key, token.encode(), "sha256").hex()
    app.config.update(
        SECRET_KEY=key,
        # Browsers send a host's cookies to all of its ports, so each study needs its own name.
        SESSION_COOKIE_NAME=f"study_{hashlib.sha256(key).hexdigest()[:8]}",
        SESSION_COOKIE_SAMESITE="Lax",  # Strict would lose the session when a link in a mail is followed
        PERMANENT_SESSION_LIFETIME=timedelta(days=90),
        MAX_CONTENT_LENGTH=16 * 1024,
        TRUSTED_HOSTS=list(hosts) or None,
    )
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    study = _Study(directory)

    @app.before_request
    def admit() -> Response | None:
        given = flask.request.args.get("token", "")
        if token and hmac.compare_digest(given.encode(), token.encode()):
            flask.session.permanent = True
            flask.session["admitted"] = admission  # invalid if the study is served with another token
            return flask.redirect(flask.url_for("start"))  # removes the token from the address bar
        if token and flask.session.get("admitted") != admission and flask.request.endpoint not in OPEN:
            flask.abort(403, "This study needs an access token: open the complete address.")
        if flask.request.method == "POST":
            _check_csrf()
        return None

    @app.after_request
    def protect(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response

    app.jinja_env.globals["csrf_token"] = _csrf_token
    app.register_error_handler(HTTPException, _failure)
    app.add_url_rule("/", "start", study.start)
    app.add_url_rule("/join", "join", study.join, methods=["POST"])
    app.add_url_rule("/leave", "leave", study.leave, methods=["POST"])
    app.add_url_rule("/pair", "pair", study.pair)
    app.add_url_rule("/pair/<int:position>", "answer", study.answer, methods=["POST"])
    app.add_url_rule("/image/<int:position>/<any(left, right):side>", "image", study.image)
    app.add_url_rule("/favicon.ico", "favicon", lambda: ("", 204))  # browsers request it by default
    for name, kind in (("study.js", "text/javascript"), ("study.css", "text/css")):
        text = resources.files("tf_detectorgan.user_study").joinpath("templates", name).read_text("utf-8")
        app.add_url_rule(f"/{name}", name, _asset(text, kind))
    return app


class _Study:
    """The views of one study."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._plan = plans.read(directory)
        self._answers = Answers(directory)

    def start(self) -> str | Response:
        if self._rater():
            return flask.redirect(flask.url_for("pair"))
        return flask.render_template("start.html", count=len(self._plan.pairs), fault="")

    def join(self) -> str | Response | tuple[str, int]:
        name = " ".join(flask.request.form.get("name", "").split())
        if not 0 < len(name) <= NAME_LENGTH or not name.isprintable():  # --report prints it to a terminal
            rater, fault = None, f"Enter a name of 1 to {NAME_LENGTH} printable characters."
        else:
            rater = self._answers.join(name)
            fault = "This name is taken: enter another one."
        if rater is None:
            return flask.render_template("start.html", count=len(self._plan.pairs), fault=fault), 400
        flask.session.permanent = True  # is kept when the browser is closed
        flask.session["rater"] = rater.id
        return flask.redirect(flask.url_for("pair"))

    def leave(self) -> Response:
        """Ends the session, so that another rater can use the browser."""
        flask.session.pop("rater", None)
        return flask.redirect(flask.url_for("start"), 303)

    def pair(self) -> str | Response:
        rater = self._rater()
        if rater is None:
            return flask.redirect(flask.url_for("start"))
        shown = plans.order(self._plan, rater.id)
        answered = {answer.pair for answer in self._answers.all(rater.id)}
        position = next((place for place, one in enumerate(shown) if one.pair not in answered), None)
        if position is None:
            return flask.render_template("done.html", rater=rater, count=len(shown))
        return flask.render_template(
            "pair.html",
            rater=rater,
            position=position,
            count=len(shown),
            box=self._plan.pairs[shown[position].pair].box,
            questions=_questions(),
        )

    def answer(self, position: int) -> Response:
        rater, shown = self._shown(position)
        method = shown.sides
        form = flask.request.form
        better = {what: method.get(form.get(f"better_{what}", "")) for what in CHOICES}
        likert = {
            f"{what}_{method[side]}": form.get(f"{what}_{side}", type=int)
            for side in method
            for what in CHOICES
        }
        if None in better.values() or not all(value in SCALE for value in likert.values()):
            flask.abort(400, "Answer all questions.")
        self._answers.add(
            Answer(
                rater=rater.id,
                pair=shown.pair,
                left=shown.left,
                better_whole=better["whole"] or "",
                better_object=better["object"] or "",
                **likert,  # type: ignore[arg-type]
            )
        )
        return flask.redirect(flask.url_for("pair"), 303)

    def image(self, position: int, side: str) -> Response:
        _, shown = self._shown(position)
        file = plans.image_file(self._directory, shown.pair, shown.sides[side])
        return flask.Response(file.read_bytes(), mimetype="image/png")

    def _shown(self, position: int) -> tuple[Rater, plans.Shown]:
        """Returns the rater and the pair at `position` of the rater's order; aborts if there is none."""
        rater = self._rater()
        if rater is None:
            flask.abort(403, "Join the study first.")
        shown = plans.order(self._plan, rater.id)
        if position >= len(shown):
            flask.abort(404, "There is no such pair.")
        return rater, shown[position]

    def _rater(self) -> Rater | None:
        number = flask.session.get("rater")
        return self._answers.rater(number) if number else None


def _questions() -> list[dict]:
    """Returns the form's questions in order: name, text, and options as pairs of value and label."""
    sides = [("left", "← Left"), ("right", "Right →")]
    scale = [(str(value), str(value)) for value in SCALE]
    rows = [("better_whole", "Better as a whole?", sides), ("better_object", "Better at the object?", sides)]
    for side in ("left", "right"):
        rows.append((f"whole_{side}", f"{side.capitalize()}: whole", scale))
        rows.append((f"object_{side}", f"{side.capitalize()}: object", scale))
    return [{"name": name, "text": text, "options": options} for name, text, options in rows]


def _secret_key(directory: Path) -> bytes:
    file = directory / KEY
    with contextlib.suppress(FileExistsError):
        number = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(number, "wb") as new:
            new.write(secrets.token_bytes(32))
    return file.read_bytes()


def _csrf_token() -> str:
    return flask.session.setdefault("csrf", secrets.token_urlsafe(24))


def _check_csrf() -> None:
    given, known = flask.request.form.get("csrf", ""), flask.session.get("csrf", "")
    if not known or not hmac.compare_digest(given.encode(), known.encode()):
        flask.abort(400, "This page is out of date: go back, reload it, and answer again.")


def _failure(error: HTTPException) -> tuple[str, int]:
    code = error.code or 500
    return flask.render_template("failure.html", code=code, text=error.description), code


def _asset(text: str, kind: str):
    return lambda: flask.Response(text, mimetype=kind)
