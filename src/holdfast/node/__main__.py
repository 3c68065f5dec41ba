"""``python -m holdfast.node``: see `holdfast.node.process`."""

import sys

from holdfast.node.process import main

sys.exit(main())
