"""`python -m enginehouse_telemetry.aggregator` runs the aggregator."""

import sys

from enginehouse_telemetry.aggregator.main import main

if __name__ == "__main__":
    sys.exit(main())
