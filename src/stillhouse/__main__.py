"""`python -m stillhouse`."""

import sys

from stillhouse.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
