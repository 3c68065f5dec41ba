"""``python -m holdfast.node``: see `holdfast.node.process`."""

import sys

from holdfast.node.process import main

if __name__ == "__main__":  # worker processes import it as well
    sys.exit(main())
