"""Verdicts that are kept, so that none is asked for twice."""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from iconoclast.evaluation.judges.protocol import VERDICTS, Item, Judge, JudgeError
from iconoclast.vocabulary import Verdict

CHUNK = 32
"""Verdicts that a cache asks for at a time: so many at most are lost to an interruption."""


class CachedJudge:
    """A judge whose verdicts are kept in a SQLite file, which several processes may share; unknown is not kept.

    Raises:
        JudgeError: the file cannot be read or written, or is not a file of verdicts.
    """

    def __init__(self, judge: Judge, file: Path) -> None:
        self._judge = judge
        self._file = file
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from None
        with self._store() as store:
            store.execute("CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL)")
            # Fails on a file that cannot be written or holds something else, before a verdict is paid for.
            store.execute("DELETE FROM verdicts WHERE key = '' AND verdict = ''")
            store.rollback()

    @property
    def name(self) -> str:
        """The judge's."""
        return self._judge.name

    @property
    def problem(self) -> str | None:
        """The judge's."""
        return self._judge.problem

    def judge(self, items: Sequence[Item], advance: Callable[[int], None] = lambda n: None) -> list[Verdict]:
        """Return one verdict an item. The judge is asked for what is not kept, once for items that are the same."""
        keys = [hashlib.sha256(json.dumps([self.name, *item]).encode()).hexdigest() for item in items]
        with self._store() as store:
            rows = [store.execute("SELECT key, verdict FROM verdicts WHERE key = ?", (key,)).fetchone() for key in keys]
            verdicts = {row[0]: VERDICTS[row[1]] for row in rows if row and row[1] in VERDICTS}
            missing = [(key, item) for key, item in dict(zip(keys, items, strict=True)).items() if key not in verdicts]
            advance(len(items) - len(missing))
            for start in range(0, len(missing), CHUNK):
                asked, texts = zip(*missing[start : start + CHUNK], strict=True)
                fresh = dict(zip(asked, self._judge.judge(texts, advance), strict=True))
                known = [(key, verdict) for key, verdict in fresh.items() if verdict != "unknown"]
                with store:
                    store.executemany("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", known)
                verdicts.update(fresh)
        return [verdicts[key] for key in keys]

    @contextmanager
    def _store(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._file, timeout=60)) as store:
                yield store
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def _unusable(self, error: Exception) -> JudgeError:
        return JudgeError(
            f"The file of verdicts {self._file} cannot be used: {error}. Delete it if it is damaged, or name another."
        )
