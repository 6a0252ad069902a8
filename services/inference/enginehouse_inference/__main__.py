"""`python -m enginehouse_inference`."""

from enginehouse_inference.main import main

main()
