"""What both backends do: read a model's files, render, constrain and detokenize, lay out steps for PRMs."""

from rsd_integrations.backends.shared.first_import import import_torch

import_torch()
