"""Interrupts during the first import of torch and transformers, which cannot be imported again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


INTERRUPTS = """
import _thread, os, sys, threading, time
from rsd_integrations import RSDPipeline

def interrupt_once_there_is(name):
    while name not in sys.modules:
        time.sleep(0.0005)
    _thread.interrupt_main()

def interrupted(name, call):
    try:
        threading.Thread(target=interrupt_once_there_is, args=(name,), daemon=True).start()
        call()
    except KeyboardInterrupt:
        print(name, "rsd-import" in [thread.name for thread in threading.enumerate()], flush=True)
"""

GOES_ON = """
interrupted("torch.nn", RSDPipeline.pocket)
if hasattr(os, "fork"):
    child = os.fork()
    if not child:
        try:
            RSDPipeline.pocket()
        except BaseException as error:
            os._exit(7 * ("when it forked this one. Restart Python" in str(error)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
interrupted("transformers.modeling_utils", RSDPipeline.pocket)
with RSDPipeline.pocket() as pipe:
    print(len(pipe.generate("Ava has 3 books. She buys 3.", seed=0, max_tokens=4).steps))
print([thread.name for thread in threading.enumerate()])
"""


@pytest.mark.slow
def test_after_an_interrupt_the_import_goes_on_and_the_next_call_waits_for_it() -> None:
    assert run(INTERRUPTS + GOES_ON).splitlines() == [
        "torch.nn True",
        "transformers.modeling_utils True",
        "1",
        "['MainThread']",
    ]


CUT_OFF = """
interrupted("torch.nn", lambda: __import__("torch"))
try:
    RSDPipeline.pocket()
except Exception as error:
    print(type(error).__name__, error)
"""


def test_an_import_that_was_cut_off_before_is_told() -> None:
    cut, told = run(INTERRUPTS + CUT_OFF).splitlines()
    assert cut == "torch.nn False"
    assert told.startswith(
        "BackendError torch's import was cut off before, and it cannot be imported again: "
    )
    assert told.endswith("Restart Python (in a notebook: the kernel).")


ENDS = """
interrupted("torch.nn", RSDPipeline.pocket)
sys.exit(0)
"""


def test_a_process_ends_while_the_import_goes_on() -> None:
    assert run(INTERRUPTS + ENDS) == "torch.nn True\n"


CALLS_BACK = """
import sys
sys.path.insert(0, FOLDER)
import torch
print(torch.whole)
"""


@pytest.mark.timeout(60)
def test_torch_s_own_import_may_lead_here(tmp_path: Path) -> None:
    """As a device's plugin does, which torch imports: the thread cannot wait for what it does itself."""
    (tmp_path / "torch.py").write_text("import rsd_integrations.backends.shared\nwhole = True\n")
    assert run(CALLS_BACK.replace("FOLDER", repr(str(tmp_path)))) == "True\n"


MISSING = """
import sys
class Missing:
    def find_spec(name, *args):
        if name == "torch":
            raise ModuleNotFoundError("there is none", name=name)
sys.meta_path.insert(0, Missing)
for _ in range(2):
    try:
        import rsd_integrations.backends.shared
    except ImportError as error:
        print(error.name)
"""


def test_what_is_not_installed_is_told_each_time() -> None:
    assert run(MISSING) == "torch\ntorch\n"
