"""Calibration: streamed histograms of activations, ranges chosen from them, and the table that keeps the ranges."""
