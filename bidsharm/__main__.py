"""``python -m bidsharm``."""

import sys

from bidsharm.cli.run import main

sys.exit(main())
