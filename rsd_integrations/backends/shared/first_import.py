"""The first import of torch: no interrupt cuts it off, and its CPU threads soon fall asleep."""

from __future__ import annotations

import contextvars
import os
import sys
import threading

from rsd_integrations.errors import BackendError
from rsd_integrations.waiting import Turns, ending_with_python

_SETTING, _SPINS = "GOMP_SPINCOUNT", "3000"
_NEEDED = ("torch", "transformers.modeling_utils", "transformers.models.auto.modeling_auto")
_TURNS = Turns()
_RESTART = "Restart Python (in a notebook: the kernel)."


def import_torch() -> None:
    """Load torch and transformers, if nobody has yet, with threads that soon fall asleep while they wait for
    each other.

    Neither can be imported again in a process where an interrupt cut it off. So a thread of its own imports
    them, which an interrupt here leaves alone: it goes on, and whoever comes next waits for it.

    Spinning threads take time from those they wait for if other processes are at work, too: sixteen pocket
    requests took more than ten times as long then. On an idle machine spinning is a tenth faster at most
    (dev/speed.md). libgomp reads the setting only when it is loaded, so it is removed again at once; what a
    user has set stands.

    Raises:
        ImportError: one of them is not installed.
        BackendError: an interrupt cut torch off before, or another process imported it when it was forked.
    """
    under_way = _Import.under_way()
    if under_way is not None and under_way is not threading.current_thread():
        under_way.wait()


class _Import(threading.Thread):
    _latest: _Import | None = None

    def __init__(self) -> None:
        super().__init__(name="rsd-import", daemon=True)
        self._caller = contextvars.copy_context()
        self._process = os.getpid()
        self._ended = threading.Event()
        self._failed: BaseException | None = None

    @classmethod
    def under_way(cls) -> _Import | None:
        """The import that is to be waited for, which may be another's; None where there is nothing to do."""
        with _TURNS.turn():
            latest = cls._latest
            if latest is not None and latest.ident is not None and not latest._ended.is_set():
                return latest
            # Whoever is importing one of them may be this very thread, which cannot wait for itself.
            if all(name in sys.modules for name in _NEEDED) or any(map(_half_imported, _NEEDED)):
                return None
            cls._latest = begun = cls()
            try:
                begun.start()
            except RuntimeError:  # There are too many threads, or the interpreter ends.
                begun.run()
            return begun

    def run(self) -> None:
        try:
            self._caller.run(ending_with_python(_import))
        except BaseException as error:
            self._failed = error
            _Import._latest = None  # The next call tries again; nobody else keeps the error.
        finally:
            del self._caller
            self._ended.set()

    def wait(self) -> None:
        """Wait for its end. An interrupt ends the wait alone."""
        while not self._ended.wait(0.1):  # Not for good: see ``wait_for_end``.
            if self._process != os.getpid():
                raise BackendError(
                    "another process was importing torch when it forked this one.", hint=_RESTART
                )
        if self.is_alive():
            self.join()
        if self._failed is not None:
            raise self._failed


def _half_imported(name: str) -> bool:
    packages = [name.rsplit(".", dots)[0] for dots in range(name.count(".") + 1)]
    specs = [getattr(sys.modules.get(package), "__spec__", None) for package in packages]
    return any(getattr(spec, "_initializing", False) for spec in specs)


def _import() -> None:
    cut_off = "torch" not in sys.modules and "torch._C" in sys.modules
    try:
        _import_with_sleeping_threads()
        from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel  # noqa: F401
    except Exception as error:
        if not cut_off:
            raise
        raise BackendError(
            f"torch's import was cut off before, and it cannot be imported again: {error}.", hint=_RESTART
        ) from error


def _import_with_sleeping_threads() -> None:
    if "torch" in sys.modules or {_SETTING, "OMP_WAIT_POLICY"} & set(os.environ):
        return
    os.environ[_SETTING] = _SPINS
    try:
        import torch  # noqa: F401
    finally:
        del os.environ[_SETTING]
