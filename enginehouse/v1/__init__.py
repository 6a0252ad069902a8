"""Generated from protos/enginehouse/v1 by `make protos`. Do not edit."""
