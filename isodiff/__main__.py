"""``python -m isodiff`` is the command ``isodiff``."""

from isodiff.cli import main

raise SystemExit(main())
