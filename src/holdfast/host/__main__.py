"""``python -m holdfast.host``: see `holdfast.host.process`."""

import sys

from holdfast.host.process import main

sys.exit(main())
