"""`python -m enginehouse_inference` runs the service."""

import sys

from enginehouse_inference.main import main

if __name__ == "__main__":
    sys.exit(main())
