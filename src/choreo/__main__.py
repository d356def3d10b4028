"""`python -m choreo` is `choreo`, and so is `torchrun ... -m -- choreo`."""

import sys

from choreo.cli import main

sys.exit(main())
