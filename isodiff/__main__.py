"""``python -m isodiff`` is the command ``isodiff``."""

from __future__ import annotations

import sys

from isodiff.cli import main

sys.exit(main())
