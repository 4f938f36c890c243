"""Answers on disk, each as soon as it is there, so that hours of work survive an interruption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rsd_integrations.bench.results import Made
from rsd_integrations.errors import ConfigError
from rsd_integrations.files import unwritten
from rsd_integrations.types import Generation

_OF_MODELS = ("safetensors", "bin", "json", "jinja", "model", "tiktoken", "txt", "py")
"""Kinds of files that decide how a model answers."""


class SavedAnswers:
    """A file of JSON lines: the settings that the answers depend on, then an answer a line.

    A file with the same settings is continued: its answers are not made again.

    Args:
        path: of the file; created if it is not there.
        settings: what answers depend on: equal settings give equal answers.
        conditions: what times depend on; times taken under other conditions are ignored.
        made: how the answers that are added from now on are made.

    Raises:
        ConfigError: it holds answers of other settings, is no such file, cannot be written, or another run
            writes to it.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, object],
        conditions: Mapping[str, object] | None = None,
        made: Made | None = None,
    ) -> None:
        self._path = path
        self._answers: dict[str, dict[int, Generation]] = {}
        self._seconds: dict[str, float] = {}
        self._conditions = dict(conditions or {})
        self._now = made
        self.made: list[Made] = []
        """How the answers were made, in the order of the first answers made so."""
        head = json.dumps({"settings": settings}, sort_keys=True)
        try:
            self._file = path.open("a", encoding="utf-8", newline="\n")
        except OSError as error:
            raise ConfigError(
                f"{str(path)!r} cannot be written to: {error.strerror}.", hint="Name another folder."
            ) from error
        try:
            self._claim()
            whole = self._read(head)
        except BaseException:
            self._file.close()
            raise
        self._file.truncate(whole)  # The last line may have been cut off.
        if not whole:
            self._write(head)

    def _claim(self) -> None:
        """Lock the file until this process closes it or ends: two that write would mix their lines."""
        try:
            import fcntl
        except ImportError:  # Windows.
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another run writes to {str(self._path)!r}.", hint="Let it end, or name another folder."
            ) from error
        except OSError:  # Some network drives know no locks.
            return

    def _read(self, head: str) -> int:
        """Take over what is there. Gives the number of bytes up to the end of the last whole line."""
        data = self._path.read_bytes()
        lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
        if not lines and head.encode().startswith(data):
            return 0
        if not lines or lines[0].decode(errors="replace").rstrip("\r\n") != head:
            raise ConfigError(
                f"{str(self._path)!r} holds answers of other models, questions or settings"
                f"{_difference(lines[0], head) if lines else ''}.",
                hint="Name another folder, or remove the file.",
            )
        for number, line in enumerate(lines[1:], 2):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(
                    f"line {number} of {str(self._path)!r} is no answer: {str(error).splitlines()[0]}.",
                    hint="Remove the line, or the file.",
                ) from error
        return sum(map(len, lines))

    def _take(self, one: Mapping[str, Any]) -> None:
        if "made" in one:
            self.made.append(Made.model_validate(one["made"]))
            return
        run = str(one["run"])
        if "seconds" not in one:
            made = Generation.model_validate(one["generation"])
            self._answers.setdefault(run, {})[int(one["problem"])] = made
        elif one["conditions"] == self._conditions:
            self._seconds[run] = float(one["seconds"])

    @property
    def count(self) -> int:
        """Answers that are there."""
        return sum(map(len, self._answers.values()))

    def of(self, run: str) -> Mapping[int, Generation]:
        """The answers of a run, by the problem's place."""
        return self._answers.get(run, {})

    def add(self, run: str, place: int, generation: Generation) -> None:
        """Keep one more, now."""
        if self._now is not None:
            self._write(json.dumps({"made": self._now.model_dump(mode="json")}))
            self.made.append(self._now)
            self._now = None
        made = {"run": run, "problem": place, "generation": generation.model_dump(mode="json")}
        self._write(json.dumps(made))
        self._answers.setdefault(run, {})[place] = generation

    def seconds(self, run: str) -> float | None:
        """How long a run took, if it was made in one go under these conditions."""
        return self._seconds.get(run)

    def ended(self, run: str, seconds: float) -> None:
        """Keep how long a run took."""
        self._seconds[run] = seconds
        self._write(json.dumps({"run": run, "seconds": seconds, "conditions": self._conditions}))

    def _write(self, line: str) -> None:
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            with suppress(OSError):  # It would write once more, and fail with an error that names no file.
                self._file.close()
            raise unwritten(self._path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def end(self) -> None:
        """Close the file, and remove one without answers: a run that failed before it had any (by a mistyped
        name, say) is no reason to refuse other settings in its folder.
        """
        if not self.count:
            with suppress(OSError):  # As on Windows. Not once it is closed: it may be another run's then.
                self._path.unlink()
        self.close()


def _difference(there: bytes, here: str) -> str:
    """Which settings differ, with both values; nothing where the first line is none of ours."""
    try:
        before, now = (dict(json.loads(line)["settings"]) for line in (there, here))
    except (ValueError, KeyError, TypeError):
        return ""
    differing = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    return ": " + ", ".join(
        f"{name} {before.get(name)!r:.80} there, {now.get(name)!r:.80} here" for name in differing
    )


def fingerprint(model: Any) -> str | None:
    """A digest of a folder's weights, config, tokenizer, templates and code, by names, sizes and times. None
    for models elsewhere: what a hub id or a URL stood for when the first answers were made is not known.
    """
    folder = Path(model) if isinstance(model, str) else None
    if folder is None or not folder.is_dir():
        return None
    # Not deeper: answers may be saved in a folder of the model's.
    files = sorted(file for kind in _OF_MODELS for file in folder.glob(f"*.{kind}") if file.is_file())
    told = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
