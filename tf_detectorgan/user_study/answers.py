"""Raters and their answers, in the SQLite file `answers.sqlite` of the study's directory."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

DATABASE = "answers.sqlite"
SCALE = range(1, 6)  # Likert: 1 fake, 5 real
CHOICES = ("whole", "object")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS rater (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
    begun TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE IF NOT EXISTS answer (
    rater INTEGER NOT NULL REFERENCES rater, pair INTEGER NOT NULL,
    left TEXT NOT NULL CHECK (left IN ('A', 'B')),
    better_whole TEXT NOT NULL CHECK (better_whole IN ('A', 'B')),
    better_object TEXT NOT NULL CHECK (better_object IN ('A', 'B')),
    whole_A INTEGER NOT NULL CHECK (whole_A BETWEEN 1 AND 5),
    object_A INTEGER NOT NULL CHECK (object_A BETWEEN 1 AND 5),
    whole_B INTEGER NOT NULL CHECK (whole_B BETWEEN 1 AND 5),
    object_B INTEGER NOT NULL CHECK (object_B BETWEEN 1 AND 5),
    given TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (rater, pair)
);
"""


class Answer(NamedTuple):
    """One rater's answers to one pair; the fields are the table's columns."""

    rater: int
    pair: int
    left: str  # the method shown on the left
    better_whole: str  # "A" or "B"
    better_object: str
    whole_A: int  # 1 to 5
    object_A: int
    whole_B: int
    object_B: int


class Rater(NamedTuple):
    """A person who rates the pairs."""

    id: int
    name: str


class Answers:
    """The database. Each call opens its own connection, so threads and processes can share the object."""

    def __init__(self, directory: Path):
        self._file = directory / DATABASE
        with self._connected() as connection:
            connection.execute("PRAGMA journal_mode = WAL")  # saved in the file; readers never wait
            connection.executescript(_SCHEMA)

    def join(self, name: str) -> Rater | None:
        """Adds a rater; returns None if the name is taken."""
        with self._connected() as connection:
            try:
                cursor = connection.execute("INSERT INTO rater (name) VALUES (?)", (name,))
            except sqlite3.IntegrityError:
                return None
            return Rater(int(cursor.lastrowid or 0), name)

    def rater(self, number: int) -> Rater | None:
        """Returns the rater with this id, or None."""
        return next((rater for rater in self.raters() if rater.id == number), None)

    def raters(self) -> list[Rater]:
        """Returns all raters, by id."""
        with self._connected() as connection:
            return [Rater(*row) for row in connection.execute("SELECT id, name FROM rater ORDER BY id")]

    def add(self, answer: Answer) -> None:
        """Stores an answer. If the pair has one, as after a reload, the first is kept."""
        columns = ", ".join(answer._fields)
        marks = ", ".join("?" * len(answer))
        with self._connected() as connection:
            connection.execute(f"INSERT OR IGNORE INTO answer ({columns}) VALUES ({marks})", answer)

    def all(self, rater: int | None = None) -> list[Answer]:
        """Returns the answers of one rater or of all, by rater and pair."""
        query = f"SELECT {', '.join(Answer._fields)} FROM answer WHERE ? IN (rater, 0) ORDER BY rater, pair"
        with self._connected() as connection:
            return [Answer(*row) for row in connection.execute(query, (rater or 0,))]

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._file, timeout=10.0)
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            with connection:  # commits, or rolls back
                yield connection
        finally:
            connection.close()
