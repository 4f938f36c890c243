"""For all tests: nothing is downloaded, and workers do not fight over the cores."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from transformers.utils import logging

torch.set_num_threads(1)
logging.disable_progress_bar()
