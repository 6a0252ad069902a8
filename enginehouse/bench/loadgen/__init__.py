"""MLPerf's scenarios with its own load generator, against an engine in a worker process or against the inference
service.

Needs the extra `enginehouse[loadgen]`. Nothing here is a submission: inputs are synthetic, and durations are often
shortened.
"""
