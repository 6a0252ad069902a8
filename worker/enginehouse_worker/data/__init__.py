"""Samples to calibrate and verify with: arrays, image files, TFRecords, and how a pixel becomes an input."""
