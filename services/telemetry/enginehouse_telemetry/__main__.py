"""`python -m enginehouse_telemetry` runs the service."""

import sys

from enginehouse_telemetry.main import main

if __name__ == "__main__":
    sys.exit(main())
