"""Traces of requests, as an option: which requests are traced, what is noted of them, and where it goes."""
