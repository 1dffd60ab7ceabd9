"""`python -m boresight.cli`."""

import sys

from boresight.cli import main

sys.exit(main())
