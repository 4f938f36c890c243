"""The in-process engine room on torch and transformers: slot caches, sampling, scoring, loading."""

from rsd_integrations.backends.shared.first_import import import_torch

import_torch()
