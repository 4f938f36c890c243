"""``python -m rsd_integrations`` is ``rsd``."""

import sys

from rsd_integrations.cli import main

if __name__ == "__main__":
    sys.exit(main())
