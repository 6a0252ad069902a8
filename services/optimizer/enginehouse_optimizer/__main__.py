"""`python -m enginehouse_optimizer` runs the service."""

import sys

from enginehouse_optimizer.main import main

if __name__ == "__main__":
    sys.exit(main())
