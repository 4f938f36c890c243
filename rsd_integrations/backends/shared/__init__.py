"""What both backends know of a model from its files: config, tokenizer, chat template."""

from rsd_integrations.backends.shared.openmp import import_torch

import_torch()
