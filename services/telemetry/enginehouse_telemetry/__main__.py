import sys

from enginehouse_telemetry.main import main

sys.exit(main())
