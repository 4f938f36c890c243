"""For all tests: nothing is downloaded, and workers do not fight over the cores."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("VLLM_API_KEY", None)

import hypothesis
import torch
from transformers.utils import logging

torch.set_num_threads(1)
# How long a case takes says nothing on a machine with other work.
hypothesis.settings.register_profile("rsd", deadline=None)
hypothesis.settings.load_profile("rsd")
logging.disable_progress_bar()


def pytest_configure() -> None:
    """Tests interrupt what they start; what was started in the background (nohup, &) would ignore that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
