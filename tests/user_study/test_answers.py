import sqlite3
import threading

from tf_detectorgan.user_study.answers import Answer, Answers


def test_reader_does_not_wait_for_a_writer(tmp_path):
    """With write-ahead logging, a reader gets the state before a write in progress."""
    store = Answers(tmp_path)
    rater = store.join("Ada")
    writer = sqlite3.connect(tmp_path / "answers.sqlite", isolation_level=None)
    assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    writer.execute("BEGIN EXCLUSIVE")
    writer.execute("DELETE FROM rater")
    assert store.raters() == [rater]
    writer.execute("ROLLBACK")
    writer.close()


def test_concurrent_answers_are_all_stored(tmp_path):
    store, count, start = Answers(tmp_path), 40, threading.Barrier(4)
    raters = [store.join(name).id for name in "abcd"]

    def answer(rater):
        start.wait()
        for pair in range(count):
            Answers(tmp_path).add(Answer(rater, pair, "A", "A", "B", 1, 2, 3, rater))

    threads = [threading.Thread(target=answer, args=(rater,)) for rater in raters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(a.rater, a.pair, a.object_B) for a in store.all()] == [
        (rater, pair, rater) for rater in raters for pair in range(count)
    ]
